"""What goes wrong with a command, as one sentence."""


class CommandError(Exception):
    """A command can't do what it was asked. `code` and `field` are those of the API's answer, where there is one."""

    def __init__(self, message: str, code: str = "failed", field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
