"""The script of a page draws its charts: in Chromium, where it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vlatool.report.facts import Axis, Bars, Chart, Curve, Fold, Part, Section, Spans
from vlatool.report.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
STEPS = np.arange(5)
AXIS = Axis(0.0, 4.0, "step", whole=True)


def drawn(folder: Path, part: Part, anchor: str = "") -> str:
    """The document after the script has drawn a part."""
    path = folder / "page.html"
    path.write_text(page("title", "", [Section("Section", [part])]))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"]
    words += ["--virtual-time-budget=5000", "--dump-dom", f"{path.as_uri()}{anchor}"]
    done = subprocess.run(
        [str(CHROMIUM), *words], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.partition("<main>")[2].partition("<script>")[0]


def ticks(text: str) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", text)


def test_each_line_is_a_path_with_gaps_and_dots_of_single_points(tmp_path: Path) -> None:
    values = np.array([0.0, 1.0, np.nan, 2.0, np.nan])
    chart = Chart("a", [Curve("x", STEPS, values), Curve("y", STEPS, STEPS * 1.0)], AXIS)
    text = drawn(tmp_path, chart)
    lines = re.findall(r'<path class="" d="([^"]*)"', text)
    assert [line.count("M") for line in lines] == [2, 1]
    assert text.count('class="dots"') == 1
    assert "NaN" not in text


@pytest.mark.parametrize(
    ("x", "y", "labels"),
    [
        (STEPS, STEPS / 4, ["0", "1", "2", "3", "4", "0.0", "0.2", "1.0"]),
        (STEPS + 1_234_567, STEPS * 1.0, ["7", "8", "11", "step + 1234560"]),
        (STEPS, 1.7e9 + STEPS * 1.0, ["0", "1", "2", "3", "4"]),  # and what is added to them
        (np.array([2**53 - 1]), np.array([1.0]), []),  # where steps of one change nothing
        (STEPS, np.full(5, -2.5), ["-2.5"]),
    ],
)
def test_ticks_are_different_numbers(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, labels: list[str]
) -> None:
    axis = Axis(float(x[0]), float(x[-1]), "step", whole=True)
    shown = ticks(drawn(tmp_path, Chart("a", [Curve("", x, y)], axis)))
    assert set(labels) <= set(shown)
    assert len(shown) < 60


def test_values_that_differ_by_orders_have_a_logarithmic_axis_that_is_named(tmp_path: Path) -> None:
    curve = Curve("", STEPS, 10.0**-STEPS)
    text = drawn(tmp_path, Chart("loss", [curve], AXIS, may_be_log=True))
    assert "logarithmic" in text
    assert {"1", "0.1", "0.0001"} <= {*ticks(text)}


def test_bars_and_texts_over_time_are_drawn(tmp_path: Path) -> None:
    text = drawn(tmp_path, Bars("a", np.array([3, 0, 5]), 10, 1, "code"))
    assert text.count('class="bar"') == 2
    text = drawn(tmp_path, Spans("a", [(0.0, 2.0, "lift"), (2.0, 4.0, "place")], AXIS))
    assert re.findall(r"<title>(.*?)</title>", text) == ["lift", "place"]


def test_a_link_opens_the_closed_part_that_it_leads_to(tmp_path: Path) -> None:
    chart = Chart("a", [Curve("", STEPS, STEPS * 1.0)], AXIS)
    text = drawn(tmp_path, Fold("episode", [chart], "e3"), "#e3")
    assert '<details id="e3" open="">' in text
