"""Commands and links of the documentation."""

import re
import shlex
from pathlib import Path

import pytest

from vlatool.cli.commands import COMMANDS
from vlatool.cli.config_command import TYPED_CONFIG
from vlatool.cli.forms import typer_command
from vlatool.cli.options import OutputOptions, take_output_options
from vlatool.cli.session import Invocation
from vlatool.config.resolve import ReadOptions
from vlatool.events import NULL

ROOT = Path(__file__).parents[2]
# Brackets inside code are not links.
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STARTED = ROOT / "docs/getting-started.md"
PUBLISHED = ("lbm", "future-vla", "metaworld")
GUIDES = [STARTED, *(ROOT / f"docs/guides/{name}.md" for name in PUBLISHED)]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)#]+)\)", CODE.sub("", page.read_text()))
    if "://" not in link
]


def commands() -> list[str]:
    """Lines of code blocks of all pages that start with vlatool, and the examples of all helps."""
    lines = [line for page in PAGES for line in code_lines(page.read_text())]
    lines += [example for row in COMMANDS.values() for example in row.examples]
    # A plugin that the page explains, and a command of the shell.
    known = [line.split("  #")[0].partition(" | ")[0].partition(" > ")[0] for line in lines]
    return list(dict.fromkeys(line for line in known if "acme" not in line.lower()))


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, fenced or indented, that start with vlatool."""
    blocks = [block for language, block in FENCED.findall(text) if not language]
    indented = re.findall(r"^ {4}(vlatool (?:.*\\\n)*.*)", FENCED.sub("", text), re.MULTILINE)
    rows = "\n".join([*blocks, *indented]).replace("\\\n", " ").splitlines()
    return [row for line in rows if (row := line.removeprefix("# ")).startswith("vlatool ")]


@pytest.mark.parametrize("line", commands())
def test_documented_command_has_a_valid_configuration(line: str) -> None:
    options = OutputOptions()
    argv = take_output_options(shlex.split(line)[1:], options)
    words = max((words for words in COMMANDS if starts_with(argv, words)), key=len)
    row = COMMANDS[words]
    command = typer_command(words, row)
    with command.make_context(f"vlatool {words}", argv[len(words.split()) :], obj=options) as ctx:
        if row.schema:
            typed = ctx.meta[TYPED_CONFIG]  # files of the examples are not there
            typed.files, typed.read_options = (), ReadOptions(row.presets)
            positionals = {key: ctx.params[key] for key in row.arguments}
            Invocation(ctx, options, NULL).resolved(**positionals)


def starts_with(argv: list[str], words: str) -> bool:
    """True for arguments that begin with the words of a command."""
    return argv[: len(words.split())] == words.split()


def test_documentation_has_commands() -> None:
    assert len(commands()) >= 200


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
    assert starts[0] in samples or starts[0][0].startswith("vlatool download ")
    whole = [lines for lines in samples if " libero " in lines[0] or page == STARTED]
    assert all(lines[1].startswith("# vlatool download ") for lines in whole if len(lines) > 1)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile
