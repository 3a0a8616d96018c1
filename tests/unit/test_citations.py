"""Citations in code: every rule from elsewhere names a page of this repository or a paper."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_READ = ("test_citations.py", "test_architecture.py")  # names of folders
FILES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "presets")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".yaml") and path.name not in NOT_READ
)
PAGES = sorted([*(ROOT / "docs/formats").glob("*.md"), *(ROOT / "docs/reference").glob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

_NUMBER = r"\d+(?:\.\d+)*"
_SECTIONS = rf"{_NUMBER}(?:(?:, | and | to |-){_NUMBER})*"
# Not the folders of src/vlatool/formats.
_PAGE = re.compile(
    rf"(?<!vlatool/)\b((?:formats|reference)/[a-z0-9-]+)(?![\w/]|\.py)(?:\.md)?(?: ({_SECTIONS}))?"
)
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


def test_cited_pages_and_sections_exist() -> None:
    assert [
        f"{name}: {page} {section}".rstrip()
        for name in NAMES
        for page, sections in _PAGE.findall(_text(name))
        for section in _missing(page, sections)
    ] == []


def _missing(page: str, sections: str) -> list[str]:
    """Cited sections that a page does not have; an empty one if there is no such page."""
    if not (ROOT / "docs" / f"{page}.md").is_file():
        return [""]
    return sorted(set(re.findall(_NUMBER, sections)) - _sections(page))


def test_sources_are_pages_papers_or_measured() -> None:
    assert [
        f"{name}: {source}"
        for name in NAMES
        for source in _sources(_text(name))
        if not (_PAGE.search(source) or _PAPER.search(source) or "measured" in source.lower())
    ] == []


def test_no_citation_leads_outside_the_repository() -> None:
    assert [
        f"{name}: {match.group()}"
        for name in NAMES
        for match in _ELSEWHERE.finditer(_PAGE.sub("", _text(name)))
    ] == []


def test_pages_have_at_most_300_lines() -> None:
    lengths = {page.name: page.read_text().count("\n") for page in PAGES}
    del lengths["findings.md"]  # its tables are written by tests.surface.record
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
