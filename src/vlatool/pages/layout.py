"""The parts of an HTML page: sections with a table of contents, tables, tiles, notes.

Whatever a function calls text is escaped by it; `body` and `cell` are HTML already.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template

from vlatool import __version__
from vlatool.inspection.fields import unit

# What fits beside the page, in letters.
_LONGEST_LINK = 27
_PREFIX = re.compile(r"^(robot__(?:action|actual|desired)__|observation\.)")

GENERATOR = "vlatool inspect"


@dataclass(frozen=True)
class Section:
    """One card of the page.

    Attributes:
        title: Text of its heading and of its line in the table of contents.
        body: HTML.
        is_under: Whether it belongs to the section before it that is not.
        is_card: Whether it has a frame; else it is a heading for those under it.
    """

    title: str
    body: str
    is_under: bool = False
    is_card: bool = True


class Html(str):
    """Text that is HTML already; everything else in a table is escaped."""

    __slots__ = ()


def escape(text: object) -> str:
    """Text as HTML; letters that cannot be written as UTF-8 become `?`."""
    writable = str(text).encode("utf-8", "replace").decode()
    return html.escape(writable.replace("\x00", ""))


def page(
    title: str, subtitle: str, sections: Sequence[Section], *, generator: str = GENERATOR
) -> str:
    """The whole document; it fetches nothing.

    Args:
        title: Text of the main heading.
        subtitle: Text under it.
        sections: Cards in order; empty ones are left out.
        generator: The command that writes it.
    """
    shown = [section for section in sections if section.body]
    links = "".join(
        f'<a href="#s{number}" title="{escape(one.title)}"{" class=under" * one.is_under}>'
        f"{_short(one.title)}</a>"
        for number, one in enumerate(shown)
    )
    cards = "".join(_section(one, number) for number, one in enumerate(shown))
    return _skeleton().substitute(
        generator=generator,
        title=escape(title),
        subtitle=escape(subtitle),
        links=links,
        cards=cards,
        version=escape(__version__),
    )


def tiles(info: Mapping[str, object]) -> str:
    """Large values over their names; empty values are left out."""
    shown = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for name, value in info.items()
        if value not in ("", None)
    )
    return f'<div class="tiles">{shown}</div>'


def tags(info: Mapping[str, object]) -> str:
    """Small `name value` labels; empty values are left out."""
    return "".join(
        f'<span class="tag">{escape(name)} <b>{escape(value)}</b></span>'
        for name, value in info.items()
        if value not in ("", None)
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()
) -> str:
    """A table, the columns `numbers` to the right; empty without rows.

    A cell is text unless it is `Html`; without `header` there is no first row.
    """
    body = "".join(
        "<tr>" + "".join(_cell("td", cell, i in numbers) for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    if not body:
        return ""
    head = "".join(_cell("th", name, index in numbers) for index, name in enumerate(header))
    first = f"<tr>{head}</tr>" if head else ""
    return f'<div class="wide"><table>{first}{body}</table></div>'


def heading(text: str, body: str) -> str:
    """A small heading over HTML; nothing where that is empty."""
    return f"<h3>{escape(text)}</h3>{body}" if body else ""


def note(text: str) -> str:
    """A sentence that stands out."""
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, body: str) -> str:
    """HTML that opens on a click on the text; nothing where that is empty."""
    return f"<details><summary>{escape(summary)}</summary><div>{body}</div></details>" * bool(body)


def sentences(language: Mapping[str, Sequence[str]], limit: int = 8) -> str:
    """All kinds of annotation with their sentences; many are folded away after `limit`."""
    rows: list[str] = []
    for kind, texts in language.items():
        quotes = [f"<blockquote>{escape(text)}</blockquote>" for text in texts]
        more = details(f"{len(quotes) - limit} more", "".join(quotes[limit:]))
        said = "".join(quotes[:limit]) + more
        rows.append(
            f'<div class="said"><span class="tag">{escape(kind)}</span><div>{said}</div></div>'
        )
    return "".join(rows)


def code(text: object) -> Html:
    """Text in a fixed-width face."""
    return Html(f"<code>{escape(text)}</code>")


def field_label(field: str) -> Html:
    """The name of a field, its beginning quiet, that may break between its parts."""
    match = _PREFIX.match(field)
    start = match[0] if match else ""
    rest = _breakable(field[len(start) :])
    return Html(f'<span class="quiet">{_breakable(start)}</span>{rest}' if start else rest)


def label_with_unit(name: str) -> Html:
    """The name of a field, with its unit where the format fixes one."""
    measure = unit(name)
    return Html(field_label(name) + f' <span class="quiet">[{measure}]</span>' * bool(measure))


@cache
def _skeleton() -> Template:
    """The page without its content: markup, style, and the line under the pointer in charts.

    Line colours are those of Okabe and Ito, which colour-blind people tell apart; the dark page
    has lighter ones of the same hues.
    """
    return Template(files("vlatool.pages").joinpath("page.html").read_text(encoding="utf-8"))


def _short(title: str) -> str:
    """The end of a long title, which is where names of episodes differ."""
    if len(title) <= _LONGEST_LINK:
        return escape(title)
    return f"&hellip;{escape(title[1 - _LONGEST_LINK :])}"


def _section(section: Section, number: int) -> str:
    content = f"<h2>{escape(section.title)}</h2>{section.body}"
    if section.is_card:
        return f'<section id="s{number}">{content}</section>'
    return f'<div class="part" id="s{number}">{content}</div>'


def _cell(tag: str, cell: object, is_number: bool) -> str:  # noqa: FBT001 - a column's property
    content = cell if isinstance(cell, Html) else escape(cell)
    return f"<{tag}{' class=number' if is_number else ''}>{content}</{tag}>"


def _breakable(text: str) -> str:
    return escape(text).replace("__", "__<wbr>").replace("::", "::<wbr>")
