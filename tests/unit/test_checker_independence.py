"""The independent model is independent: neither it nor anything that it imports has anything of Farthing."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = (
    *sorted(path.relative_to(ROOT) for path in (ROOT / "tests" / "support").glob("checker*.py")),
    Path("tests/chaos/rounds/judging.py"),
    Path("tests/chaos/rounds/books.py"),
)


def names_in(path: Path) -> set[str]:
    """Every name that a file imports, wherever in it: of ``from a import b`` also ``a.b``, which may be a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative"
            assert node.level == 0, "relative"
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return names


def files_of(name: str) -> Iterator[Path]:
    """The file of a module, and those of the packages that are imported before it."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:count])
        yield from (each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file())


def packages_reached(path: Path) -> dict[str, set[str]]:
    """Every package that is imported by a file or, over and over, by the tests' files that it imports; and by which."""
    reached: dict[str, set[str]] = {}
    seen, left = set[Path](), [ROOT / path]
    while left:
        file = left.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in names_in(file):
            package = name.partition(".")[0]
            reached.setdefault(package, set()).add(str(file.relative_to(ROOT)))
            if package == "tests":
                left += files_of(name)
    return reached


@pytest.mark.parametrize("path", MODEL, ids=str)
def test_the_model_imports_itself_and_the_standard_library_only(path: Path) -> None:
    foreign = {name: by for name, by in packages_reached(path).items() if name not in sys.stdlib_module_names}
    foreign.pop("tests", None)
    assert not foreign


def test_what_is_imported_by_way_of_others_is_seen() -> None:
    reached = packages_reached(Path("tests/support/twin_operations.py"))
    assert "tests/support/twin_operations.py" not in reached["services"]
    assert "tests/support/twins.py" in reached["services"]
