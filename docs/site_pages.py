"""Pages of the documentation site that are made from other files and from the code.

README.md and its neighbours become pages, and every command has a page with its help. Links
between files of the repository become links between pages.
"""

import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from vlatool.cli import app
from vlatool.cli.commands import COMMANDS, Command

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
# Files outside docs/ to pages.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/scale.md": "scale.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]\n]*\]\()([^)\s]+)\)")
_COLUMNS = "100"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files below docs/, and the lists of folders to the navigation."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_with_page_links(text, source, page)))
    overview = "\n".join(_overview_lines())
    files.append(File.generated(config, "commands/index.md", content=overview))
    for name, command in COMMANDS.items():
        content = "\n".join(_command_lines(name, command))
        files.append(File.generated(config, _command_file(name), content=content))
    config.nav = [_expanded(entry, files) for entry in config.nav or ()]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/ become links to their pages."""
    del config, files
    uri = page.file.src_uri
    is_generated = page.file.generated_by is not None
    return markdown if is_generated else _with_page_links(markdown, DOCS + uri, uri)


def _expanded(entry: object, files: Files) -> object:
    """An entry of the navigation; `{title: folder/}` has all pages of the folder."""
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if not (isinstance(value, str) and value.endswith("/")):
        return entry
    pages = (file.src_uri for file in files if file.src_uri.startswith(value))
    return {title: sorted(pages, key=lambda page: (not page.endswith("/index.md"), page))}


def _with_page_links(text: str, source: str, page: str) -> str:
    """Text of a file of the repository with its links as seen from a page."""

    def to_page(target: str) -> str | None:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        name = PAGES.get(name) or (name.removeprefix(DOCS) if name.startswith(DOCS) else "")
        is_folder = name and (ROOT / DOCS / name).is_dir()
        return None if is_folder or not name else posixpath.relpath(name, posixpath.dirname(page))

    def link(match: re.Match[str]) -> str:
        target = to_page(match[2])
        return match[1] if target is None else f"[{match[1]}]({target}{match[3] or ''})"

    def image(match: re.Match[str]) -> str:
        return f"{match[1]}{to_page(match[2])})"

    return _IMAGE.sub(image, _LINK.sub(link, text))


def _command_file(name: str) -> str:
    return f"commands/{name.replace(' ', '-')}.md"


def _overview_lines() -> Iterator[str]:
    yield from ("# Commands", "", "| Command | What it does |", "|---|---|")
    for name, command in COMMANDS.items():
        file = posixpath.basename(_command_file(name))
        yield f"| [{name}]({file}) | {command.summary} |"


def _help(name: str) -> str:
    text = io.StringIO()
    with patch.dict(os.environ, COLUMNS=_COLUMNS, NO_COLOR="1"), redirect_stdout(text):
        app.run([*name.split(), "--help-all"])
    return text.getvalue().rstrip()


def _command_lines(name: str, command: Command) -> Iterator[str]:
    yield from (f"# vlatool {name}", "", command.summary, "")
    if command.details:
        yield from (command.details, "")
    if command.examples:
        yield from ("```", *command.examples, "```", "")
    yield from ("## All options", "", "```text", _help(name), "```", "")
