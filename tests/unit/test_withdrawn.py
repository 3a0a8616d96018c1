"""Names that are withdrawn: they are not promised any more, and who types one is told."""

from pathlib import Path

import pytest

from tests.surface.invoke import run_vlatool
from vlatool.plugins import FORMATS, did_you_mean
from vlatool.withdrawn import WITHDRAWN

ROOT = Path(__file__).parents[2]
# Pages about earlier versions.
HISTORY = {"CHANGELOG.md", "migration-0.3.md", "migration-0.4.md"}
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PAGES += sorted((ROOT / "tests/surface/recorded").rglob("*.txt"))  # help of every command


@pytest.mark.parametrize("name", WITHDRAWN)
def test_a_withdrawn_name_is_in_no_page_and_no_help(name: str) -> None:
    pages = [path for path in PAGES if path.name not in HISTORY]
    # A plain word may mean other things.
    shown = (f"--{name}", f"`{name}`", f".{name}:") if name.isalpha() else (name,)
    assert [p for p in pages if any(text in p.read_text() for text in shown)] == []


@pytest.mark.parametrize("name", WITHDRAWN)
def test_who_types_a_withdrawn_name_is_told_what_to_use(name: str) -> None:
    assert WITHDRAWN[name] in did_you_mean(name, FORMATS.names())


@pytest.mark.parametrize("words", [["--gap-s", "3"], ["--source.gap_s", "3"]])
def test_a_withdrawn_option_says_what_to_use(words: list[str]) -> None:
    code, text = run_vlatool("preprocess", "mcap", "bags", "--output", "data", "--json", *words)
    assert code == 2
    assert WITHDRAWN["gap_s"] in text
