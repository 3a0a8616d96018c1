"""Parts of an HTML page: sections with a table of contents, cards, tables, tiles, notes.

Functions escape text arguments; `body` and `cell` are HTML already.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template

from vlatool import __version__
from vlatool.errors import DataError

# Columns of a table that fit a narrow page.
_MAX_COLUMNS = 2
# Longest link in the table of contents, in characters.
_MAX_LINK = 34
_PREFIX = re.compile(r"^(robot__(?:action|actual|desired)__|observation\.)")

GENERATOR = "vlatool inspect"


@dataclass(frozen=True)
class Section:
    title: str  # text of its heading and of its link in the table of contents
    body: str  # HTML
    is_under: bool = False  # True if it belongs to the last section before it without this flag
    is_card: bool = True  # True if it has a frame; else it is a heading of the sections under it
    anchor: str = ""  # name of the section in links; made up if empty


class Html(str):
    """HTML text; other values in a table are escaped."""

    __slots__ = ()


def escape(text: object) -> str:
    """Text as HTML; characters that cannot be encoded as UTF-8 become `?`."""
    writable = str(text).encode("utf-8", "replace").decode()
    return html.escape(writable.replace("\x00", ""))


def page(
    title: str, subtitle: str, sections: Sequence[Section], *, generator: str = GENERATOR
) -> str:
    """HTML document without external resources; sections without a body are left out."""
    shown = [section for section in sections if section.body]
    links = "".join(
        f'<a href="#{_anchor(section, number)}" title="{escape(section.title)}"'
        f"{' class=under' * section.is_under}>{_short(section.title)}</a>"
        for number, section in enumerate(shown)
    )
    cards = "".join(_section(section, number) for number, section in enumerate(shown))
    return _skeleton().substitute(
        generator=generator,
        title=escape(title),
        subtitle=escape(subtitle),
        links=links,
        cards=cards,
        version=escape(__version__),
    )


def group(title: str, members: Sequence[Section]) -> list[Section]:
    """Cards under a heading; empty without cards."""
    heading = Section(title, '<p class="quiet">evenly spaced</p>', is_card=False)
    return [heading, *members] if members else []


def card(name: str, make: Callable[[], Section]) -> Section:
    """Card made by `make`, or a card with the error if that raises DataError."""
    try:
        return make()
    except DataError as error:
        return Section(name, note(error.message), is_under=True)


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` positions in 0..total-1: the centers of equal parts."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def tiles(info: Mapping[str, object]) -> str:
    """Tiles with large values over their names; empty values are left out."""
    shown = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(_unit_of(value, name))}</span></div>"
        for name, value in info.items()
        if value not in ("", None)
    )
    return f'<div class="tiles">{shown}</div>'


def _unit_of(value: object, name: str) -> str:
    """Name below a value, a plural unless the value is one."""
    return name.removesuffix("s") if str(value) == "1" else name


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
    """Table with the columns `numbers` aligned to the right; empty without rows.

    A cell is text unless it is `Html`; an empty `header` is left out. On a narrow page, the cells
    of a row of a wide table are below each other, each after the name of its column.
    """
    is_stacked = len(header) > _MAX_COLUMNS
    names = [f' data-h="{_text(name)}"' for name in header] if is_stacked else []
    body = "".join(
        "<tr>"
        + "".join(
            _cell("td", cell, i in numbers, names[i] if names else "") for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    if not body:
        return ""
    head = "".join(_cell("th", name, index in numbers) for index, name in enumerate(header))
    first = f"<tr>{head}</tr>" if head else ""
    style = " class=stack" if is_stacked else ""
    return f'<div class="wide"><table{style}>{first}{body}</table></div>'


def heading(text: str, body: str) -> str:
    """Small heading over HTML; empty if `body` is."""
    return f"<h3>{escape(text)}</h3>{body}" if body else ""


def note(text: str) -> str:
    """Highlighted sentence."""
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, body: str) -> str:
    """HTML that opens on a click on the summary; empty if `body` is."""
    return f"<details><summary>{escape(summary)}</summary><div>{body}</div></details>" * bool(body)


def sentences(language: Mapping[str, Sequence[str]], limit: int = 8) -> str:
    """All kinds of annotation with their sentences; those after `limit` are collapsed."""
    rows: list[str] = []
    for kind, texts in language.items():
        quotes = [f"<blockquote>{escape(text)}</blockquote>" for text in texts]
        more = details(f"{len(quotes) - limit} more", "".join(quotes[limit:]))
        body = "".join(quotes[:limit]) + more
        rows.append(
            f'<div class="language"><span class="tag">{escape(kind)}</span><div>{body}</div></div>'
        )
    return "".join(rows)


def text_block(text: str) -> str:
    """Block of text with its line breaks and spaces."""
    return f'<div class="said">{escape(text)}</div>'


def code(text: object) -> Html:
    return Html(f"<code>{escape(text)}</code>")


def field_label(field: str) -> Html:
    """Name of a field with its prefix in gray and line breaks allowed between its parts."""
    match = _PREFIX.match(field)
    prefix = match[0] if match else ""
    rest = _breakable(field[len(prefix) :])
    return Html(f'<span class="quiet">{_breakable(prefix)}</span>{rest}' if prefix else rest)


def label_with_unit(name: str, unit: str) -> Html:
    """Name of a field, with its unit unless it is empty."""
    return Html(field_label(name) + f' <span class="quiet">[{unit}]</span>' * bool(unit))


@cache
def _skeleton() -> Template:
    """Template of a page: markup, style, and the cursor line of charts.

    Line colors are those of Okabe and Ito, which remain distinct with color blindness; the dark
    theme has lighter ones of the same hues.
    """
    return Template(files("vlatool.pages").joinpath("page.html").read_text(encoding="utf-8"))


def _short(title: str) -> str:
    """Title, of a long one only the end, where names of episodes differ."""
    if len(title) <= _MAX_LINK:
        return escape(title)
    return f"&hellip;{escape(title[1 - _MAX_LINK :])}"


def _section(section: Section, number: int) -> str:
    content = f"<h2>{escape(section.title)}</h2>{section.body}"
    anchor = _anchor(section, number)
    if section.is_card:
        return f'<section id="{anchor}">{content}</section>'
    return f'<div class="part" id="{anchor}">{content}</div>'


def _anchor(section: Section, number: int) -> str:
    return escape(section.anchor) or f"s{number}"


def _cell(tag: str, cell: object, is_number: bool, name: str = "") -> str:  # noqa: FBT001 - a column's property
    number = " class=number" if is_number else ""
    text = _text(cell)
    if name and text:
        text = f"<span>{text}</span>"  # one block beside the name of the column
    return f"<{tag}{number}{name}>{text}</{tag}>"


def _text(cell: object) -> str:
    return cell if isinstance(cell, Html) else escape(cell)


def _breakable(text: str) -> str:
    return escape(text).replace("__", "__<wbr>").replace("::", "::<wbr>")
