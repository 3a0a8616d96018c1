"""The check of the links of the documentation site, and the diagrams of its pages."""

import re
from pathlib import Path

import pytest

from docs.site import site_problems

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ('<a href="other/">', ""),
        ('<a href="other/#here">', ""),
        ('<a href="#top">', ""),
        ('<a href="https://example.org/page">', ""),
        ('<link rel="canonical" href="https://example.org/">', ""),
        ('<a href="absent/">', "absent/ is not there"),
        ('<a href="other/#gone">', "other/#gone has no such anchor"),
        ('<img src="absent.svg">', "absent.svg is not there"),
        (
            '<script src="https://example.org/a.js">',
            "https://example.org/a.js is loaded from another server",
        ),
    ],
)
def test_each_kind_of_broken_link_is_named(tmp_path: Path, tag: str, problem: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/index.html").write_text('<h1 id="here">')
    (tmp_path / "index.html").write_text(f'<h1 id="top">{tag}')
    expected = [f"index.html: {problem}"] if problem else []
    assert site_problems(tmp_path) == expected


def test_diagrams_are_files_that_github_and_the_site_show() -> None:
    pages = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert "```mermaid" not in pages  # the site would need a script of another server
    shown = set(re.findall(r"\(diagrams/([\w-]+\.svg)\)", pages))
    assert shown == {path.name for path in (DOCS / "diagrams").iterdir()}
