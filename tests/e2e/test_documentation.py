"""Commands and links of the documentation."""

import re
import shlex
from pathlib import Path

import pytest

from vlatool.cli import app

ROOT = Path(__file__).parents[2]
# Brackets inside code are not links.
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)#]+)\)", CODE.sub("", page.read_text()))
    if "://" not in link
]


def commands() -> list[str]:
    """Lines of code blocks of the README and the guides that start with vlatool, each once."""
    blocks = [
        block
        for page in GUIDES
        for language, block in FENCED.findall(page.read_text())
        if not language
    ]
    rows = [line.removeprefix("# ") for block in blocks for line in block.splitlines()]
    lines = [line.split("  #")[0].strip() for line in rows]
    return list(dict.fromkeys(line for line in lines if line.startswith("vlatool ")))


@pytest.mark.parametrize("line", commands())
def test_documented_command_is_valid(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    # --keys exits after parsing: unknown commands and options fail, nothing runs.
    assert app.run([*shlex.split(line)[1:], "--keys"]) == 0, capsys.readouterr().err


def test_documentation_has_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.name}:{link}" for page, link in LINKS]
)
def test_link_resolves(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


@pytest.mark.parametrize("page", GUIDES, ids=[page.name for page in GUIDES])
def test_pipelines_begin_with_a_download(page: Path) -> None:
    first = [
        [line for line in block.splitlines() if line.removeprefix("# ").startswith("vlatool ")]
        for language, block in FENCED.findall(page.read_text())
        if not language
    ]
    starts = [lines[:2] for lines in first if lines]
    samples = [lines for lines in starts if lines[0].startswith("vlatool sample ")]
    assert len(samples) == 2 or page.name != "README.md"
    assert starts[0] in samples or starts[0][0].startswith("vlatool download ")
    whole = [lines for lines in samples if " libero " in lines[0] or page.name == "README.md"]
    assert all(lines[1].startswith("# vlatool download ") for lines in whole if len(lines) > 1)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile
