"""Sections as an HTML page."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders.pages import charts_of
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
from vlatool.report.page import MAX_VIDEO_BYTES, PageVideos, common_start, page

# A tag, and the ends of attributes in both kinds of quotes.
HOSTILE = "<script>alert('x')</script>&' x-evil=1 \" x-evil=1 >"
AXIS = Axis(0.0, 3.0, HOSTILE)
STEPS = np.arange(4)
FIGURE = Figure(Image.new("RGB", (8, 6)), HOSTILE, HOSTILE)
LINES = [Curve(HOSTILE, STEPS, STEPS * 1.0)]


def shown(*parts: Part) -> str:
    """The cards of a page with a section of these parts."""
    text = page("title", "subtitle", [Section("Section", parts)])
    return text.partition("<main>")[2].partition("<script>")[0]


@pytest.mark.parametrize(
    "part",
    [
        *(Text(HOSTILE, kind) for kind in ("", "quiet", "note", "verbatim", "code", "tag")),
        Tiles({HOSTILE: HOSTILE}),
        Tags({HOSTILE: HOSTILE}),
        Table((HOSTILE, HOSTILE, HOSTILE), [(HOSTILE, Code(HOSTILE), Link(HOSTILE, HOSTILE))]),
        Table((), [(HOSTILE, FIGURE)], HOSTILE),
        Quotes({HOSTILE: [HOSTILE] * 9}),
        Chart(HOSTILE, LINES, AXIS, HOSTILE),
        Bars(HOSTILE, STEPS, 0, 1, HOSTILE),
        Spans(HOSTILE, [(0.0, 1.0, HOSTILE)], AXIS),
        Figures([FIGURE, Figure(None, HOSTILE, problem=HOSTILE)], HOSTILE, HOSTILE),
        Videos([Video(HOSTILE, HOSTILE), Video(b"mp4", HOSTILE)]),
        Gallery([Tile(FIGURE, 0, HOSTILE, [HOSTILE], HOSTILE)] * 11),
        Fold(HOSTILE, [Text(HOSTILE)], HOSTILE),
        Titled(HOSTILE, [Text(HOSTILE)]),
    ],
)
def test_texts_of_a_part_are_escaped(part: Part) -> None:
    tags: list[str] = []
    attributes: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            attributes.update(name for name, _ in attrs)

    Reader().feed(page(HOSTILE, HOSTILE, [Section(HOSTILE, [part], anchor=HOSTILE)]))
    assert tags.count("script") == 1
    assert "x-evil" not in attributes


EMPTY: list[Part] = [
    Text(""),
    Tiles({"a": None}),
    Tags({"a": ""}),
    Table(("a",), []),
    Quotes({}),
    Chart("a", [Curve("", STEPS, np.full(4, np.nan))], AXIS),
    Bars("a", STEPS[:0], 0, 1, "code"),
    Spans("a", [], AXIS),
    Figures([], "label"),
    Videos([]),
    Gallery([]),
    Fold("a", []),
    Titled("a", [Text("")]),
    Timeline([], 0.0),
]


@pytest.mark.parametrize("part", EMPTY)
def test_parts_without_contents_and_their_sections_are_left_out(part: Part) -> None:
    text = page("raw", "source", [Section("Overview", [Text("1")]), Section("Problems", [part])])
    assert ">Overview</a>" in text
    assert "Problems" not in text


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    text = shown(Table(("task", "episodes", "rate"), [("pick", 3, Share(0.25))]))
    assert "<th>task</th><th class=number>episodes</th>" in text
    assert '<td class=number data-h="episodes"><span>3</span></td>' in text
    assert "width:25%" in text


def test_a_long_common_beginning_of_names_is_cut() -> None:
    names = ["observation.images.front", "observation.images.wrist"]
    assert common_start(names) == "observation.images."
    assert common_start(["front", "frost"]) == ""
    text = shown(Table(("camera",), [(name,) for name in names]))
    assert '<span class="rest" title="observation.images.front">front</span>' in text
    # A word before a number stays.
    assert common_start(["data/raw_episode_1", "data/raw_episode_2"]) == "data/raw_"


def test_the_name_below_a_one_is_no_plural_and_empty_tiles_are_left_out() -> None:
    text = shown(Tiles({"episodes": "1", "frames": 40, "split": "", "fps": None}))
    assert "<b>1</b><span>episode</span>" in text
    assert "<b>40</b><span>frames</span>" in text
    assert "split" not in text


def test_a_line_has_gaps_where_values_are_not_finite_or_too_large() -> None:
    values = np.array([0.123456789, np.nan, 1e308, 2.0])
    (chart,) = charts_of(shown(Chart("a", [Curve("", STEPS, values)], AXIS)))
    assert chart["lines"][0]["y"] == [0.123457, None, None, 2]
    assert chart["x"] == [0, 1, 2, 3]


def test_small_changes_of_large_numbers_and_late_steps_are_kept() -> None:
    steps = np.arange(4) + 1_234_567
    values = 1.7e9 + np.arange(4) * 0.25
    axis = Axis(float(steps[0]), float(steps[-1]), "step", whole=True)
    (chart,) = charts_of(shown(Chart("a", [Curve("", steps, values)], axis)))
    assert chart["x"] == [1_234_567, 1_234_568, 1_234_569, 1_234_570]
    assert chart["lines"][0]["y"] == values.tolist()


def test_lines_over_other_positions_keep_theirs() -> None:
    lines = [*LINES, Curve("b", STEPS[1:], STEPS[1:] * 1.0), Curve("c", STEPS, STEPS * 2.0)]
    (chart,) = charts_of(shown(Chart("a", lines, AXIS)))
    assert [line.get("x") for line in chart["lines"]] == [None, [1, 2, 3], None]


def test_a_long_line_keeps_its_peaks() -> None:
    values = np.zeros(10_000)
    values[1234] = 5.0
    values[7000] = np.nan
    line = Curve("", np.arange(10_000), values)
    (chart,) = charts_of(shown(Chart("a", [line], Axis(0, 9999))))
    assert len(chart["x"]) <= 800
    assert 5.0 in chart["lines"][0]["y"]
    assert None in chart["lines"][0]["y"]


def test_small_images_keep_their_pixels_and_large_ones_are_reduced() -> None:
    large = Figure(Image.new("RGB", (600, 300)), largest=240)
    text = shown(Figures([FIGURE, large]))
    assert text.count('class="image small"') == 1
    assert 'width="240" height="120"' in text


def test_videos_beyond_the_limit_are_files_beside_the_page(tmp_path: Path) -> None:
    stale = tmp_path / "page_files" / "episode_9_camera_0.mp4"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier page")
    (stale.parent / "mine.mp4").write_bytes(b"of somebody else")
    videos = PageVideos(tmp_path / "page.html", has_files=True)
    assert isinstance(videos.keep("a", bytes(MAX_VIDEO_BYTES)), bytes)
    assert videos.keep("b", b"more") == "page_files/episode_b.mp4"
    videos.remove_others()
    assert sorted(path.name for path in stale.parent.iterdir()) == ["episode_b.mp4", "mine.mp4"]


def test_videos_beyond_the_limit_are_left_out_where_files_are_not_wanted(tmp_path: Path) -> None:
    videos = PageVideos(tmp_path / "page.html", has_files=False)
    assert videos.keep("a", bytes(MAX_VIDEO_BYTES)) is not None
    assert videos.keep("b", b"more") is None
