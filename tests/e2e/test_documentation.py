"""What the documentation tells people to type and to open."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Code has brackets of its own.
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)#]+)\)", CODE.sub("", page.read_text()))
    if "://" not in link
]


def commands() -> list[str]:
    """Lines of README code blocks that start with vlatool, comments left out."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("vlatool ") and "COMMAND" not in line]


@pytest.mark.parametrize("line", commands())
def test_readme_command_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    # --keys stops behind the parsing: unknown commands and options fail, nothing runs.
    done = subprocess.run(
        [sys.executable, "-m", "vlatool", *words, "--keys"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_readme_has_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.name}:{link}" for page, link in LINKS]
)
def test_links_lead_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile
