"""Renders sections as one HTML page without external resources, and escapes all texts."""

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from os.path import commonprefix
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from vlatool import __version__
from vlatool.episode import Array
from vlatool.report.facts import (
    Axis,
    Bars,
    Chart,
    Code,
    Curve,
    Figure,
    Figures,
    Fold,
    Gallery,
    Link,
    Part,
    Quotes,
    Section,
    Share,
    Spans,
    Table,
    Tags,
    Text,
    Tile,
    Tiles,
    Timeline,
    Titled,
    Video,
    Videos,
)
from vlatool.report.text import MAX_DRAWN, is_number
from vlatool.storage.atomic import write_bytes

GENERATOR = "vlatool inspect"
NUM_COLORS = 8  # of lines, in page.html
FEW = 10  # images of a strip in large; tiles of a gallery without a filter
MAX_VIDEO_BYTES = 50 * 10**6  # of the videos inside a page

_NARROW = 2  # columns of a table that fit a narrow page
_LONGEST_LINK = 34  # in the table of contents, in characters
_SHORTEST_START = 8  # common beginning of names that is cut, in characters
_MOST_POINTS = 400  # of a line
_MOST_DIGITS = 15  # of a number in a chart
_QUALITY = 78  # of JPEG
_PIXELATED = 128  # largest side of an image whose pixels stay sharp when it is enlarged
_MANY = 24  # tiles from which on a gallery has a height and scrolls
_BREAK = re.compile("__|::")
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f]")  # not allowed in HTML


def page(
    title: str, subtitle: str, sections: Sequence[Section], *, generator: str = GENERATOR
) -> str:
    """HTML document; sections without contents are left out."""
    shown: list[tuple[Section, str, str]] = []  # section, name in links, HTML of its parts
    for section in sections:
        body = _parts(section.parts)
        if body:
            shown.append((section, section.anchor or f"s{len(shown)}", body))
    start = common_start([section.title for section, _, _ in shown if section.is_under])
    links = ""
    cards = ""
    for section, anchor, body in shown:
        name = section.title
        if section.is_under and start:
            name = f"…{name[len(start) :]}"
        if len(name) > _LONGEST_LINK:
            name = f"…{name[1 - _LONGEST_LINK :]}"
        style = " class=under" if section.is_under else ""
        full = _escape(section.title)
        links += f'<a href="#{_escape(anchor)}" title="{full}"{style}>{_escape(name)}</a>'
        tag, kind = ("section", "") if section.is_card else ("div", ' class="part"')
        cards += f'<{tag}{kind} id="{_escape(anchor)}"><h2>{full}</h2>{body}</{tag}>'
    return _skeleton().substitute(
        generator=generator,
        title=_escape(title),
        subtitle=_escape(subtitle),
        links=links,
        cards=cards,
        version=_escape(__version__),
    )


class PageVideos:
    """Videos of one page: up to 50 MB inside the page, the rest in a folder beside it."""

    def __init__(self, page: Path, *, has_files: bool) -> None:
        self._has_files = has_files  # False: further ones are left out
        self._folder = page.with_name(f"{page.stem}_files")
        self._left = MAX_VIDEO_BYTES
        self._files: set[str] = set()

    def keep(self, name: str, data: bytes) -> bytes | str | None:
        """Source of the `Video` of an mp4, None without room for it; `name`: stem of its file
        without `episode_`, unique on the page.
        """
        if len(data) <= self._left:
            self._left -= len(data)
            return data
        if not self._has_files:
            return None
        file = self._folder / f"episode_{name}.mp4"
        write_bytes(file, data)
        self._files.add(file.name)
        return f"{self._folder.name}/{file.name}"

    def remove_others(self) -> None:
        """Removes videos of an earlier page of this name."""
        for file in self._folder.glob("episode_*.mp4"):
            if file.name not in self._files:
                file.unlink()


def common_start(names: Sequence[str]) -> str:
    """Long common beginning of several names, up to a separator; empty if there is none."""
    if len(names) < 2:
        return ""
    start = commonprefix(list(names))  # noqa: RUF071 - of any characters
    end = max(start.rfind(sign) + 1 for sign in "/_.:")
    if any(name[end : end + 1].isdecimal() for name in names):  # keep the word before a number
        end = max(start.rfind(sign, 0, max(end - 1, 0)) + 1 for sign in "/_.:")
    is_sentence = " " in start
    return start[:end] if end >= _SHORTEST_START and not is_sentence else ""


@cache
def _skeleton() -> Template:
    """Markup, style and the script of charts.

    Lines have the colors of Okabe and Ito, which stay distinct with color blindness; the dark theme
    has lighter ones of the same hues.
    """
    return Template(files("vlatool.report").joinpath("page.html").read_text(encoding="utf-8"))


def _escape(text: object) -> str:
    """Text as HTML; characters that cannot be encoded as UTF-8 become `?`."""
    writable = str(text).encode("utf-8", "replace").decode()
    return html.escape(_CONTROL.sub("", writable))


def _parts(parts: Iterable[Part]) -> str:
    return "".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    """HTML of a part; empty without contents."""
    match part:
        case Text():
            return _paragraph(part)
        case Tiles():
            return _tiles(part)
        case Tags():
            return _tags(part)
        case Table():
            return _table(part)
        case Quotes():
            return _quotes(part)
        case Chart():
            return _chart(part)
        case Bars():
            return _bars(part)
        case Spans():
            return _spans(part)
        case Figures():
            return _figures(part)
        case Videos():
            return _strip("", [_video(video) for video in part.videos], "wide")
        case Gallery():
            return _gallery(part)
        case Fold():
            return _fold(part)
        case Titled():
            body = _parts(part.parts)
            return f"<h3>{_escape(part.title)}</h3>{body}" if body else ""
        case Timeline():
            body = _parts(part.parts)
            frame = f'<div class="time" data-low="{part.low:.6g}" data-speed="{part.speed:.6g}">'
            return f"{frame}{body}</div>" if body else ""


def _paragraph(part: Text) -> str:
    if not part.text:
        return ""
    text = _escape(part.text)
    match part.kind:
        case "verbatim":
            return f'<div class="said">{text}</div>'
        case "code":
            return f'<p class="small quiet"><code>{text}</code></p>'
        case "tag":
            return f'<span class="tag">{text}</span>'
        case "":
            return f"<p>{text}</p>"
        case kind:
            return f'<p class="{kind}">{text}</p>'


def _tiles(part: Tiles) -> str:
    shown = ""
    for name, value in part.values.items():
        if value in ("", None):
            continue
        is_plural = name.endswith("s") and not name.endswith("ss")
        unit = name[:-1] if str(value) == "1" and is_plural else name
        shown += f"<div><b>{_escape(value)}</b><span>{_escape(unit)}</span></div>"
    return f'<div class="tiles">{shown}</div>' if shown else ""


def _tags(part: Tags) -> str:
    shown = ""
    for name, value in part.values.items():
        if value not in ("", None):
            shown += f'<span class="tag">{_escape(name)} <b>{_escape(value)}</b></span>'
    return shown


def _table(part: Table) -> str:
    """A table; if it is wide and the page narrow, the cells of a row are below each other, each
    after the name of its column.
    """
    rows = [list(row) for row in part.rows]
    if not rows:
        return ""
    columns = max(len(row) for row in rows)
    numeric = [all(_is_number(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    names = [row[0] for row in rows if row and row[0] != ""]
    is_named = all(isinstance(name, str | Code | Link) for name in names)
    start = common_start([str(name) for name in names]) if is_named else ""
    is_stacked = len(part.header) > _NARROW
    body = ""
    if part.header:
        cells = zip(part.header, numeric, strict=False)
        body += f"<tr>{''.join(_cell('th', name, is_right) for name, is_right in cells)}</tr>"
    for row in rows:
        body += "<tr>"
        for index, cell in enumerate(row):
            name = part.header[index] if is_stacked and index < len(part.header) else ""
            cut = start if index == 0 else ""
            body += _cell("td", cell, numeric[index], name, cut)
        body += "</tr>"
    style = " class=stack" if is_stacked else ""
    table = f'<div class="wide"><table{style}>{body}</table></div>'
    return f"<h3>{_escape(part.title)}</h3>{table}" if part.title else table


def _is_number(cell: object) -> bool:
    if isinstance(cell, Code | Link | Figure):
        return False
    return isinstance(cell, int | float | Share) or is_number(str(cell))


def _cell(tag: str, cell: object, is_right: bool, name: str = "", start: str = "") -> str:  # noqa: FBT001 - a column's property
    """Cell of a table; `name` of its column on a narrow page; `start`: text that is not shown."""
    text = _cell_text(cell, start)
    if name and text:
        text = f"<span>{text}</span>"  # one block beside the name of the column
    style = " class=number" if is_right else ""
    column = f' data-h="{_escape(name)}"' if name else ""
    return f"<{tag}{style}{column}>{text}</{tag}>"


def _cell_text(cell: object, start: str) -> str:
    match cell:
        case None:
            return ""
        case Code():
            return f"<code>{_cut(str(cell), start)}</code>"
        case Link():
            return f'<a href="{_escape(cell.target)}">{_cut(cell.text, start)}</a>'
        case Share():
            width = f"{100 * cell.value:.0f}%"
            return f'{cell} <div class="rate"><i style="width:{width}"></i></div>'
        case Figure():
            return _image(cell)
        case _:
            return _cut(str(cell), start)


def _cut(text: str, start: str) -> str:
    """Text without a beginning, which can be searched and copied all the same."""
    if not start or not text.startswith(start):
        return _breakable(text)
    full = _escape(text)
    rest = _breakable(text[len(start) :])
    return (
        f'<span class="cut">{_escape(start)}</span><span class="rest" title="{full}">{rest}</span>'
    )


def _breakable(text: str) -> str:
    """Escaped text that may break between the parts of a name."""
    return _BREAK.sub(lambda match: f"{match[0]}<wbr>", _escape(text))


def _quotes(part: Quotes) -> str:
    rows = ""
    for kind, texts in part.texts.items():
        quotes = [f"<blockquote>{_escape(text)}</blockquote>" for text in texts]
        body = "".join(quotes[: part.limit])
        if len(quotes) > part.limit:
            more = "".join(quotes[part.limit :])
            body += _details(f"{len(quotes) - part.limit} more", more)
        rows += f'<div class="language"><span class="tag">{_escape(kind)}</span>'
        rows += f"<div>{body}</div></div>"
    return rows


def _fold(part: Fold) -> str:
    body = _parts(part.parts)
    return _details(part.summary, body, part.anchor) if body else ""


def _details(summary: str, body: str, anchor: str = "") -> str:
    name = f' id="{_escape(anchor)}"' if anchor else ""
    return f"<details{name}><summary>{_escape(summary)}</summary><div>{body}</div></details>"


def _chart(chart: Chart) -> str:
    lines = [line for line in chart.lines if np.isfinite(_drawable(line.y)).any()]
    if not lines or not np.isfinite([chart.axis.low, chart.axis.high]).all():
        return ""
    shared: list[float | None] = []  # positions of the first line
    drawn: list[dict[str, Any]] = []
    legend = ""
    for position, line in enumerate(lines):
        color = (position if line.color is None else line.color) % NUM_COLORS
        xs, ys = _points(line)
        positions = _numbers(xs)
        values: dict[str, Any] = {"color": color, "y": _numbers(ys)}
        if not drawn:
            shared = positions
        elif positions != shared:
            values["x"] = positions
        if line.is_dashed:
            values["dashed"] = True
        drawn.append(values)
        dashed = " class=dashed" if line.is_dashed else ""
        mark = f'<i{dashed} style="color:var(--c{color})"></i>' if line.name else ""
        legend += f'<span class="key">{mark}{_escape(line.name)} <b></b></span>'
    document = {"axis": _axis(chart.axis), "x": shared, "lines": drawn}
    if chart.has_dots:
        document["dots"] = True
    if chart.may_be_log:
        document["log"] = True
    return _plot(chart.title, document, legend, chart.detail)


def _plot(title: str, document: Mapping[str, Any], legend: str, detail: str = "") -> str:
    """Chart that the script of the page draws from the document."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    text = html.escape(text, quote=False).replace("'", "&#39;")  # shorter than with &quot;
    about = f"<span class=quiet>{_escape(detail)} <span class=more></span> <span class=at></span>"
    low = " low" if "spans" in document else ""
    return (
        f'<figure class="chart"><figcaption>{_breakable(title)} {about}</span> {legend}'
        f'</figcaption><div class="plot{low}" data-label="{_escape(title)}" '
        f"data-chart='{text}'></div></figure>"
    )


def _axis(axis: Axis) -> dict[str, Any]:
    low = float(axis.low)
    high = float(axis.high) if axis.high > axis.low else low + 1
    document: dict[str, Any] = {"low": low, "high": high, "unit": axis.unit}
    if axis.whole:
        document["whole"] = True
    if axis.marks:
        document["marks"] = _numbers(np.array(axis.marks))
    if axis.anchor is not None:
        document["anchor"] = float(axis.anchor)
    if axis.shaded:
        document["shaded"] = axis.shaded
    return document


def _drawable(values: Array) -> Array:
    """Numbers as float64; NaN for numbers that are not finite, or too large for differences."""
    numbers = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(numbers) < MAX_DRAWN, numbers, np.nan)


def _numbers(values: Array) -> list[float | None]:
    """Numbers with five digits of their range; None for numbers that are not finite."""
    is_finite = np.isfinite(values)
    finite = values[is_finite]
    digits = _MOST_DIGITS
    if finite.size and (span := float(np.ptp(finite))) > 0:
        largest = float(np.abs(finite).max())
        digits = min(5 + max(0, math.ceil(math.log10(largest / span))), _MOST_DIGITS)
    numbers: list[float | None] = []
    for value, is_known in zip(values.tolist(), is_finite.tolist(), strict=True):
        rounded = float(f"{value:.{digits}g}") if is_known else None
        is_whole = rounded is not None and abs(rounded) < 10**digits and rounded.is_integer()
        numbers.append(int(rounded) if rounded is not None and is_whole else rounded)
    return numbers


def _points(line: Curve) -> tuple[Array, Array]:
    """Points of a line. A long line keeps its peaks: the least and the greatest point of short
    parts.
    """
    ys = _drawable(line.y)
    count = len(ys)
    if count <= _MOST_POINTS:
        return line.x, ys
    kept: set[int] = {0, count - 1}
    for part in np.array_split(np.arange(count), _MOST_POINTS // 2):
        values = ys[part]
        is_finite = np.isfinite(values)
        kept.update(part[~is_finite][:1].tolist())
        if is_finite.any():
            kept.add(int(part[np.nanargmin(values)]))
            kept.add(int(part[np.nanargmax(values)]))
    order = np.array(sorted(kept))
    return line.x[order], ys[order]


def _bars(part: Bars) -> str:
    if not len(part.counts):
        return ""
    high = part.first + part.step * len(part.counts) - 0.5
    axis = Axis(part.first - 0.5, high, part.unit, whole=True)
    document = {"axis": _axis(axis), "bars": part.counts.tolist()}
    return _plot(part.title, document | {"first": part.first, "step": part.step}, "")


def _spans(part: Spans) -> str:
    numbers: dict[str, int] = {}
    spans: list[tuple[float, float, int, str]] = []
    for start, end, text in part.spans:
        number = numbers.setdefault(text, len(numbers))
        spans.append((max(start, part.axis.low), min(end, part.axis.high), number, text))
    if not spans:
        return ""
    legend = ""
    for text, number in numbers.items():
        key = f'<i style="color:var(--c{number % NUM_COLORS})"></i>{_escape(text)}'
        legend += f'<span class="key">{key}</span>'
    return _plot(part.title, {"axis": _axis(part.axis), "spans": spans}, legend)


def _figures(part: Figures) -> str:
    size = part.size or ("many" if len(part.figures) > FEW else "")
    label = _escape(part.label)
    if part.detail:
        label += f' <span class="quiet">{_escape(part.detail)}</span>'
    return _strip(label, [_figure(figure) for figure in part.figures], size)


def _strip(label: str, figures: Sequence[str], size: str) -> str:
    if not figures:
        return ""
    head = f'<div class="label">{label}</div>' if label else ""
    return f'{head}<div class="{f"strip {size}".strip()}">{"".join(figures)}</div>'


def _figure(figure: Figure) -> str:
    caption = f"<figcaption>{_escape(figure.caption)}</figcaption>" if figure.caption else ""
    return f"<figure>{_image(figure)}{caption}</figure>"


def _image(figure: Figure) -> str:
    if figure.image is None:
        return f'<span class="image missing">{_escape(figure.problem)}</span>'
    width, height = figure.image.size
    small = figure.image.convert("RGB")
    scale = figure.largest / max(width, height)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = small.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    overlay = ""
    if figure.overlay:
        overlay = f'<svg viewBox="0 0 {width} {height}">{figure.overlay}</svg>'
    style = "image small" if max(width, height) <= _PIXELATED else "image"
    text = _escape(figure.description or figure.caption)
    return (
        f'<span class="{style}"><img alt="{text}" width="{small.width}" '
        f'height="{small.height}" src="data:image/jpeg;base64,{data}">{overlay}</span>'
    )


def _video(video: Video) -> str:
    source = video.source
    if isinstance(source, bytes):
        source = f"data:video/mp4;base64,{base64.b64encode(source).decode()}"
    options = 'controls muted loop playsinline preload="metadata"'
    shown = f'<video {options} src="{_escape(source)}"></video>'
    return f"<figure>{shown}<figcaption>{_escape(video.caption)}</figcaption></figure>"


def _gallery(part: Gallery) -> str:
    """Tiles side by side; if there are many, with one box that filters and one that sorts them."""
    if not part.tiles:
        return ""
    start = common_start([tile.name for tile in part.tiles])
    tiles = "".join(_tile(tile, start) for tile in part.tiles)
    boxes = ""
    if len(part.tiles) > FEW:
        choices = ""
        for index, key in enumerate(("number", "name", "length", "instruction")):
            choices += f'<option value="{index}">by {key}</option>'
        hint = "filter: name, instruction, length"
        boxes = f'<div><input class="filter" type="search" placeholder="{hint}">'
        boxes += f' <select class="filter" aria-label="sort">{choices}</select></div>'
    style = "gallery many" if len(part.tiles) > _MANY else "gallery"
    return f'{boxes}<div class="{style}">{tiles}</div>'


def _tile(tile: Tile, start: str) -> str:
    below = f"<span>{_cut(tile.name, start)}</span>"
    below += "".join(f"<span>{_escape(line)}</span>" for line in tile.lines if line)
    image = _image(tile.figure)
    anchor = f'href="#{_escape(tile.anchor)}" title="{_escape(tile.name)}"'
    return f"<a {anchor}>{image}<b>{tile.number}</b>{below}</a>"
