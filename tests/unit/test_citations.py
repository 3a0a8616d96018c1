"""Citations in code: every rule from elsewhere names a page of this repository or a paper."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "presets")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".yaml") and path != Path(__file__)
)
PAGES = sorted([*(ROOT / "docs/formats").glob("*.md"), *(ROOT / "docs/reference").glob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

_NUMBER = r"\d+(?:\.\d+)*"
_SECTIONS = rf"{_NUMBER}(?:(?:, | and | to |-){_NUMBER})*"
_PAGE = re.compile(rf"\b((?:formats|reference)/[a-z-]+)(?:\.md)?(?: ({_SECTIONS}))?")
_HEADING = re.compile(rf"^#+ ({_NUMBER})\.? ", re.MULTILINE)
# A paper is cited with its year or identifier, and the place in it.
_PAPER = re.compile(r"(equation|eq\.|table|section|figure|appendix|algorithm) ?\S", re.IGNORECASE)
# Pages that are not in the repository.
_ELSEWHERE = re.compile(
    r"\b(lbm-data(?!-params)|lbm-training|lerobot-format|data-order|(style|design|words)\.md"
    r"|(titok|future-vla|lbm|lerobot|spartan|order|policy) \d+(\.\d+)+)\b"
)


@cache
def _text(name: str) -> str:
    """Content of a file with comment signs and line ends as single spaces."""
    return re.sub(r"\s*\n\s*(# ?)?", " ", (ROOT / name).read_text())


@cache
def _sections(page: str) -> frozenset[str]:
    return frozenset(_HEADING.findall((ROOT / "docs" / f"{page}.md").read_text()))


def _sources(text: str) -> Iterator[str]:
    """Text after each `Source:`, up to the end of the sentence, docstring or comment."""
    for match in re.finditer(r"\bSource: (.*?)(?=\"\"\"|\.\s+[A-Z@\"]|\. *$|  )", text):
        yield match.group(1)


@pytest.mark.parametrize("name", NAMES)
def test_cited_pages_and_sections_exist(name: str) -> None:
    for page, sections in _PAGE.findall(_text(name)):
        assert (ROOT / "docs" / f"{page}.md").is_file(), f"{name}: {page}"
        missing = set(re.findall(_NUMBER, sections)) - _sections(page)
        assert not missing, f"{name}: {page} has no section {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", NAMES)
def test_sources_are_pages_papers_or_measured(name: str) -> None:
    bad = [
        source
        for source in _sources(_text(name))
        if not (_PAGE.search(source) or _PAPER.search(source) or "measured" in source.lower())
    ]
    assert bad == []


@pytest.mark.parametrize("name", NAMES)
def test_no_citation_leads_outside_the_repository(name: str) -> None:
    text = _PAGE.sub("", _text(name))
    assert [match.group() for match in _ELSEWHERE.finditer(text)] == []


def test_pages_have_at_most_300_lines() -> None:
    assert {page.name: n for page in PAGES if (n := page.read_text().count("\n")) > 300} == {}
