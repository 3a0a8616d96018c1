"""The documentation site: `python -m docs.site` builds it into site/ with zensical.

README.md and its neighbors become pages, every command has a page with a table of its options, the
notebook of the demo one with its cells (demo_notebook.py; no outputs: they are those of the machine
that runs it). Links between files of the repository become links between pages. Links that lead
nowhere, and files from other servers, end the build: the pages show the same without a network.
"""

import io
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import yaml

from vlatool.cli import app
from vlatool.cli import help as cli_help
from vlatool.cli.commands import COMMANDS, Command
from vlatool.cli.help import HelpRow

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
# Files outside docs/ to pages.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
# Pages whose sections come last among the results of a search.
RANKED_LAST = (
    "reference/",
    "changelog",
    "contributing",
    "benchmarks",
    "commands/launch-",
    "commands/resolve-",
)
NOTEBOOK = "demo.ipynb"
_BUILD = ROOT / "build/site"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]\n]*\]\()([^)\s]+)\)")
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
_DEFAULT = re.compile(r"(.*) \[(.*)\]$")  # at the end of a description
_INDEX = "index.html"
# Tags whose targets are loaded with the page, and the names of these targets.
_LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src")}
# A link that names where the page lies on a server, and loads nothing.
_NAMES = {"canonical", "prev", "next"}


def main() -> None:
    """Builds the site; ends with the problems of its links, if there are any."""
    shutil.rmtree(_BUILD, ignore_errors=True)
    shutil.copytree(
        ROOT / DOCS, _BUILD / DOCS, ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    for path in (_BUILD / DOCS).rglob("*.md"):
        uri = path.relative_to(_BUILD / DOCS).as_posix()
        path.write_text(_with_page_links(path.read_text(), DOCS + uri, uri))
    for name, text in _generated():
        path = _BUILD / DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    config["nav"] = [_expanded(entry) for entry in config["nav"]]
    (_BUILD / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--clean", "--strict"],
        cwd=_BUILD,
        check=True,
    )
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    (_BUILD / "site").rename(ROOT / "site")
    index = ROOT / "site/search.json"
    found = json.loads(index.read_text())
    found["items"] = [ranked(item) for item in found["items"]]
    index.write_text(json.dumps(found))
    if problems := site_problems(ROOT / "site"):
        sys.exit("\n".join(["Links of the site:", *problems]))


def ranked(item: dict[str, Any]) -> dict[str, Any]:
    """A section of the search index; in the reference its heading counts as text.

    The search orders by titles first, so that a guide comes before a specification with the same
    heading. The section shows the name of its page instead.
    """
    if item["level"] == 1 or not item["location"].startswith(RANKED_LAST):
        return item
    *path, page = item["path"]
    return item | {"title": page, "path": path, "text": f"{item['title']}. {item['text']}"}


def _generated() -> Iterator[tuple[str, str]]:
    """Names and texts of the pages that are not files below docs/."""
    for source, page in PAGES.items():
        yield page, _with_page_links((ROOT / source).read_text(), source, page)
    yield "commands/index.md", "\n".join(_overview_lines())
    for name, command in COMMANDS.items():
        yield _command_file(name), "\n".join(command_lines(name, command))
    texts = [
        (kind, text if kind == "markdown" else f"```python\n{text}\n```") for kind, text in cells()
    ]
    title, _, rest = "\n\n".join(text for _, text in texts).partition("\n")
    link = f"[Download the notebook]({NOTEBOOK}), which has the cells of this page."
    yield NOTEBOOK, notebook()
    yield "demo.md", f"{title}\n\n{link}\n{rest}\n"


def _expanded(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the navigation; `{title: folder/}` has all pages of the folder."""
    if not isinstance(entry, dict):
        return entry
    ((title, value),) = entry.items()
    if not (isinstance(value, str) and value.endswith("/")):
        return entry
    pages = [f"{value}{path.name}" for path in (_BUILD / DOCS / value).glob("*.md")]
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


class OptionGroup(NamedTuple):
    """Group of a command's options, as its help lists them."""

    title: str
    rows: Sequence[HelpRow]


def option_groups(name: str) -> tuple[str, list[OptionGroup]]:
    """Usage line and groups of options of a command."""
    text = io.StringIO()
    groups: list[OptionGroup] = []

    def collect(_: Any, title: str, rows: Sequence[HelpRow]) -> None:
        groups.extend([OptionGroup(title, rows)] if rows else [])

    with patch.object(cli_help, "write_rows", collect), redirect_stdout(text):
        app.run([*name.split(), "--help-all"])
    return text.getvalue().partition("\n")[0].removeprefix("Usage: "), groups


def command_lines(name: str, command: Command) -> Iterator[str]:
    usage, groups = option_groups(name)
    yield from (f"# vlatool {name}", "", command.summary, "", "```text", usage, "```", "")
    if command.details:
        yield from (command.details, "")
    if command.examples:
        yield from ("```", *command.examples, "```", "")
    for group in groups:
        yield from (f"## {group.title}", "", "| Name | Meaning | Default |", "|---|---|---|")
        yield from (_option_line(*row) for row in group.rows)
        yield ""


def _option_line(option: str, description: str) -> str:
    """Row of the table of options; its anchor is the long name of the option."""
    long = next((word for word in option.split() if word.startswith("--")), option.split()[0])
    anchor = long.replace("[no-]", "").strip(".,")
    match = _DEFAULT.match(description)
    meaning, default = match.groups() if match else (description, "")
    link = f'<a id="{anchor}" href="#{anchor}">{_code(option)}</a>'
    return f"| {link} | {_prose(meaning)} | {_code(default)} |"


def _code(text: str) -> str:
    return f"<code>{_escaped(text)}</code>" if text else ""


def _prose(text: str) -> str:
    """Text of a cell, with code in back quotes and everything else as it is typed."""
    parts = text.split("`")
    return "".join(_code(part) if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is typed."""
    return re.sub(r"[^\w\s.,;:/()-]", lambda match: f"&#{ord(match[0])};", text).replace(
        "_", "&#95;"
    )


def cells() -> list[tuple[str, str]]:
    """Kind, `markdown` or `code`, and text of each cell."""
    _, *rest = _CELL.split((ROOT / "docs/demo_notebook.py").read_text())
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return [_cell("markdown" if mark else "code", text) for mark, text in pairs]


def _cell(kind: str, text: str) -> tuple[str, str]:
    is_text = kind == "markdown"
    return kind, (re.sub(r"^# ?", "", text, flags=re.MULTILINE) if is_text else text).strip()


def notebook() -> str:
    """The notebook as a JSON document, format 4.5."""
    document: dict[str, Any] = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "cells": [_entry(index, *cell) for index, cell in enumerate(cells())],
    }
    return json.dumps(document, indent=1) + "\n"


def _entry(index: int, kind: str, text: str) -> dict[str, Any]:
    entry = {"id": f"cell-{index}", "cell_type": kind, "metadata": {}, "source": text}
    return {**entry, "execution_count": None, "outputs": []} if kind == "code" else entry


def site_problems(site: Path) -> list[str]:
    """Sentences on the links that lead nowhere, and on files from other servers."""
    pages = {page: _Page(page.read_text(encoding="utf-8")) for page in sorted(site.rglob("*.html"))}
    return [
        f"{page.relative_to(site).as_posix()}: {problem}"
        for page, content in pages.items()
        if page.name != "404.html"  # its links begin at the root of a server
        for problem in content.problems(page, pages)
    ]


class _Target(NamedTuple):
    """Where a tag points, and whether a browser loads it with the page."""

    location: str
    is_loaded: bool


class _Page(HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[_Target] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if values.get("rel") in _NAMES:
            return
        for name in ("href", "src"):
            if name in values:
                self.targets.append(_Target(values[name], (tag, name) in _LOADED))

    def problems(self, page: Path, pages: dict[Path, "_Page"]) -> list[str]:
        """Sentences on the targets of this page."""
        return [text for target in self.targets if (text := _problem(target, page, pages))]


def _problem(target: _Target, page: Path, pages: dict[Path, _Page]) -> str:
    location = target.location
    parts = urlsplit(location)
    if parts.netloc:
        return f"{location} is loaded from another server" if target.is_loaded else ""
    if parts.scheme:
        return ""
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    path = path / _INDEX if path.is_dir() else path
    if not path.is_file():
        return f"{location} is not there"
    anchor = unquote(parts.fragment)
    is_missing = anchor and path in pages and anchor not in pages[path].anchors
    return f"{location} has no such anchor" if is_missing else ""


if __name__ == "__main__":
    main()
