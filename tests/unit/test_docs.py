"""What the documents cite exists, and nothing in them was left to be filled in."""

import re
from functools import cache
from pathlib import Path

import pytest

from services.adapters.config import Settings
from tools import dump_vendors
from tools.dump_settings import TARGET, document

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("services/**/README.md")]
)
DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@cache
def names_of_tests() -> set[str]:
    modules = (REPOSITORY / "tests").rglob("test_*.py")
    return {name for each in modules for name in re.findall(r"^ *(?:async )?def (test_\w+)", each.read_text(), re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_cited_tests_and_files_exist(document: Path) -> None:
    text = document.read_text()
    assert "PLACEHOLDER" not in text
    for folder, test in re.findall(
        r"`(?:tests/)?((?:unit|property|contract|integration|chaos|simulation)/[\w/]+\.py)(?:::(\w+))?`", text
    ):
        path = REPOSITORY / "tests" / folder
        assert path.is_file(), folder
        assert not test or f"def {test}(" in path.read_text(), test
    assert set(re.findall(r"`(?:…::)?(test_\w+)`", text)) <= names_of_tests()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("decision", DECISIONS, ids=name_of)
def test_a_decision_ends_with_what_enforces_it(decision: Path) -> None:
    last = decision.read_text().rstrip().rpartition("\n\n")[2]
    assert last.startswith("Enforced by `tests/")


@pytest.mark.parametrize("room", ["gateway", "aggregator", "ledger", "control", "sandbox", "embedded"])
def test_a_room_opens_with_a_short_readme(room: str) -> None:
    lines = (REPOSITORY / "services" / room / "README.md").read_text().splitlines()
    assert 5 <= len(lines) <= 40


def test_the_page_of_vendors_is_what_the_dialects_say() -> None:
    assert dump_vendors.TARGET.read_text() == dump_vendors.document()


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    assert TARGET.read_text() == document()
    assert all(field.description for field in Settings.model_fields.values())
