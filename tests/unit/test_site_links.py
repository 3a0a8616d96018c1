"""The documentation site: the check of its links, the tables of options, the diagrams."""

import re
from pathlib import Path

import pytest

from docs.site import command_lines, ranked, site_problems
from vlatool.cli.commands import COMMANDS

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


def test_heading_of_a_specification_does_not_count_as_a_title_in_a_search() -> None:
    section = {"level": 2, "title": "Resume", "text": "Steps.", "path": ["Reference", "Training"]}
    guide = section | {"location": "train.html#resume"}
    specification = section | {"location": "reference/training.html#resume"}

    assert ranked(guide) == guide
    assert ranked(specification)["title"] == "Training"
    assert ranked(specification)["text"] == "Resume. Steps."


def test_options_of_each_command_are_tables_with_one_anchor_for_each() -> None:
    for name, command in COMMANDS.items():
        text = "\n".join(command_lines(name, command))
        anchors = re.findall(r'\| <a id="([^"]+)" href="#\1">', text)
        assert len(anchors) == len(set(anchors)) == text.count("<a id="), name
        assert "--json" in anchors, name
        assert all(line.count(" | ") == 2 for line in text.splitlines() if "<a id=" in line), name


def test_an_option_has_its_default_in_a_column_of_its_own() -> None:
    text = "\n".join(command_lines("train", COMMANDS["train"]))
    assert '<a id="--data.lanes" href="#--data.lanes"><code>--data.lanes N</code></a>' in text
    assert "a power of two. | <code>64</code> |" in text


def test_diagrams_are_files_that_github_and_the_site_show() -> None:
    pages = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert "```mermaid" not in pages  # the site would need a script of another server
    shown = set(re.findall(r"diagrams/([\w-]+\.svg)\)", pages))
    assert shown == {path.name for path in (DOCS / "diagrams").iterdir()}
