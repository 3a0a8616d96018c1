"""Facts as plain data; one renderer shows them as text, another as a page.

A `Report` is what `inspect` returns. The sections of a page are lists of the parts below; a part
without contents is left out, and so is a section without parts.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError

T = TypeVar("T")

# Codes int64 [N, K] to images uint8 [N, S, S, 3].
Decoder = Callable[[Array], UInt8Array]
Findings = Sequence[Mapping[str, str]]

_STATUS_TEXTS = {"whole": "complete"}


@dataclass(frozen=True)
class Code:
    """Cell with a literal, such as a key or a path."""

    text: object

    def __str__(self) -> str:
        return str(self.text)


@dataclass(frozen=True)
class Link:
    """Cell that leads to another page, or to a section of this one."""

    text: str
    target: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Share:
    """Cell with a bar."""

    value: float  # 0 to 1

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} %"


@dataclass(frozen=True)
class Text:
    """Paragraph."""

    text: str
    # A note is a problem; verbatim text keeps its spaces and line breaks.
    kind: Literal["", "quiet", "note", "verbatim", "code", "tag"] = ""


@dataclass(frozen=True)
class Tiles:
    """Large values over their names; empty values are left out."""

    values: Mapping[str, object]


@dataclass(frozen=True)
class Tags:
    """Small labels with a name and a value; empty values are left out."""

    values: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Rows of cells: strings, numbers, `Code`, `Link`, `Share`, `Figure`. Columns of numbers are
    aligned to the right; the header may be empty.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


@dataclass(frozen=True)
class Quotes:
    """Sentences by kind of annotation; those after `limit` are collapsed."""

    texts: Mapping[str, Sequence[str]]
    limit: int = 8


@dataclass(frozen=True)
class Axis:
    """Horizontal axis that several charts share."""

    low: float  # value at the left end of the chart
    high: float  # value at the right end
    unit: str = "s"
    whole: bool = False  # True if its ticks are integers
    marks: tuple[float, ...] = ()  # values with a dashed line
    # Value with a solid line, from which the others are counted; None without one.
    anchor: float | None = None
    shaded: tuple[tuple[float, float], ...] = ()  # shaded ranges, such as padding


@dataclass(frozen=True)
class Curve:
    """Line of a chart, with gaps where a number is not finite."""

    name: str  # text of the legend; empty for none
    x: Array  # positions in ascending order [S]
    y: Array  # numbers [S]
    color: int | None = None  # number of its color; None: its position in the chart
    is_dashed: bool = False  # of predictions

    def finite(self) -> dict[int, float]:
        """Position to value where the value is finite."""
        is_finite = np.isfinite(self.y)
        return dict(zip(self.x[is_finite].tolist(), self.y[is_finite].tolist(), strict=True))


@dataclass(frozen=True)
class Chart:
    """Lines over an axis."""

    title: str
    lines: Sequence[Curve]
    axis: Axis
    detail: str = ""  # smaller text after the title
    has_dots: bool = False  # True if each point is drawn
    may_be_log: bool = False  # True: logarithmic if the values are positive and differ by orders


@dataclass(frozen=True)
class Bars:
    """Bar for each range of `step` integers from `first` on."""

    title: str
    counts: Array  # height of each bar [B]
    first: int
    step: int
    unit: str


@dataclass(frozen=True)
class Spans:
    """Texts over time."""

    title: str
    spans: Sequence[tuple[float, float, str]]  # start and end on the axis, text
    axis: Axis


@dataclass(frozen=True)
class Figure:
    """Image, or the reason why it is missing, over a caption."""

    image: Image.Image | None  # RGB
    caption: str = ""
    description: str = ""  # alternative text; empty: the caption
    overlay: str = ""  # SVG elements in the pixels of the image
    problem: str = ""
    largest: int = 240  # largest width and height on the page, in pixels


@dataclass(frozen=True)
class Figures:
    """Images side by side."""

    figures: Sequence[Figure]
    label: str = ""
    detail: str = ""  # smaller text after the label
    size: Literal["", "wide", "tight", "sheet"] = ""


@dataclass(frozen=True)
class Video:
    """An mp4, or its path relative to the page."""

    source: bytes | str
    caption: str


@dataclass(frozen=True)
class Videos:
    """Videos side by side; with several that show one episode, they play together."""

    videos: Sequence[Video]


@dataclass(frozen=True)
class Tile:
    """Link to a section: an image over a number, a name and lines of text."""

    figure: Figure
    number: int
    name: str
    lines: Sequence[str]
    anchor: str


@dataclass(frozen=True)
class Gallery:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Fold:
    """Parts that open with a click."""

    summary: str
    parts: "Sequence[Part]"
    anchor: str = ""  # name in links, which open it


@dataclass(frozen=True)
class Titled:
    """Parts under a small heading."""

    title: str
    parts: "Sequence[Part]"


@dataclass(frozen=True)
class Timeline:
    """Videos and charts of one stretch of time, with one cursor."""

    parts: "Sequence[Part]"
    low: float  # where the axis of its charts begins
    speed: float = 1.0  # seconds of the axis in a second of the videos


Part = (
    Text
    | Tiles
    | Tags
    | Table
    | Quotes
    | Chart
    | Bars
    | Spans
    | Figures
    | Videos
    | Gallery
    | Fold
    | Titled
    | Timeline
)


@dataclass(frozen=True)
class Section:
    title: str  # text of its heading and of its link in the table of contents
    parts: Sequence[Part]
    is_under: bool = False  # True if it belongs to the last section before it without this flag
    is_card: bool = True  # True if it has a frame; else it is a heading of the sections under it
    anchor: str = ""  # name of the section in links; made up if empty


@dataclass(frozen=True)
class PageRequest:
    episodes: int = 0  # number of raw episodes to show
    samples: int = 0  # number of training samples to show
    # (stem that is unique on the page, mp4) -> source of its `Video`, None if there is no room for
    # it. None: no videos.
    keep_video: Callable[[str, bytes], bytes | str | None] | None = None
    # (folder, its entry `codes`) -> Decoder of its codes; None: show no reconstructions. Raises
    # DataError if the codes are of another tokenizer.
    open_decoder: Callable[[Path, Mapping[str, Any]], Decoder] | None = None


@dataclass(frozen=True)
class Report:
    """Facts of an artifact or a source."""

    kind: str  # `source`, `shards`, `shard`, `run`, ...; determines the keys of the document
    headline: str  # summary in one line
    facts: Mapping[str, Any]  # all facts as JSON values
    summary: Mapping[str, object]  # map from name to value of the first block of text
    tables: Sequence[Table] = ()  # further blocks of text; empty ones are left out
    # Broken or missing files, with `code` and `message`; None for a kind that has none, or lists
    # them in its facts.
    findings: Findings | None = None
    # Makes the sections of the page; None if there is none.
    page: Callable[[PageRequest], Sequence[Section]] | None = field(default=None, compare=False)

    def document(self) -> dict[str, Any]:
        findings = {} if self.findings is None else {"findings": list(self.findings)}
        return {**self.facts, **findings, "kind": self.kind}


class Problems(list[dict[str, str]]):
    """List of findings, each with `code` and `message`."""

    def read(self, read: Callable[..., T], *arguments: object) -> T | None:
        """Result of `read`; None, and a finding, if it raises DataError."""
        with self.collecting():
            return read(*arguments)
        return None

    @contextmanager
    def collecting(self) -> Generator[None]:
        """Adds a DataError of the block as a finding."""
        try:
            yield
        except DataError as error:
            self.append({"code": error.code, "message": error.message})


def notes(findings: Findings) -> list[Part]:
    """A note for each finding."""
    return [Text(finding["message"], "note") for finding in findings]


def card(name: str, make: Callable[[], Section]) -> Section:
    """The section that `make` returns, or one that shows its DataError."""
    try:
        return make()
    except DataError as error:
        return Section(name, [Text(error.message, "note")], is_under=True)


def under_heading(title: str, members: Sequence[Section]) -> list[Section]:
    """Evenly spaced examples under a heading; empty without any."""
    if not members:
        return []
    return [Section(title, [Text("evenly spaced", "quiet")], is_card=False), *members]


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` positions in 0..total-1: the centers of equal parts."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def histogram(values: Iterable[int], unit: str, noun: str = "episode") -> Bars:
    """Histogram of integers, with bins of integer width."""
    numbers = np.array([*values], np.int64)
    title = f"number of {noun}s"
    if not numbers.size:
        return Bars(title, numbers, 0, 1, unit)
    low = int(numbers.min())
    step = -(-(int(numbers.max()) - low + 1) // 24)
    return Bars(title, np.bincount((numbers - low) // step), low, step, unit)


def status_text(status: str) -> str:
    """Status of an artifact as it is shown; JSON documents say `whole` for a complete one."""
    return _STATUS_TEXTS.get(status, status)


def branch(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Mapping under `key`; empty if there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def listed(tree: Mapping[str, Any], key: str) -> list[Any]:
    """List under `key`; empty if there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []
