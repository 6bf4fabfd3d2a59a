"""Multipart forms, written by hand."""

from typing import Final

BOUNDARY: Final = "------------------------d74496d66958873e"
FORM_TYPE: Final = f"multipart/form-data; boundary={BOUNDARY}"


def form(*parts: tuple[str, str | bytes], closed: bool = True) -> bytes:
    """A form of text fields and, for bytes, files."""
    lines = []
    for name, value in parts:
        disposition = f'Content-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            head = f'{disposition}; filename="{name}.bin"\r\nContent-Type: application/octet-stream'
            lines.append(head.encode() + b"\r\n\r\n" + value)
        else:
            lines.append(f"{disposition}\r\n\r\n{value}".encode())
    opened = b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + line + b"\r\n" for line in lines)
    return opened + (b"--" + BOUNDARY.encode() + b"--\r\n" if closed else b"")
