"""Links of the finished site: each leads to a page and a place of the site or to another server.

The pages show the same without a network: what they load is part of the site.
"""

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_INDEX = "index.html"
# Tags whose targets are loaded with the page, and the names of these targets.
_LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src")}
# A link that names where the page lies on a server, and loads nothing.
_NAMES = {"canonical", "prev", "next"}


def on_post_build(config: MkDocsConfig) -> None:
    """Ends the build if a link leads nowhere.

    Raises:
        PluginError: It lists the links.
    """
    problems = site_problems(Path(config.site_dir))
    if problems:
        raise PluginError("\n".join(["Links of the site:", *problems]))


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
