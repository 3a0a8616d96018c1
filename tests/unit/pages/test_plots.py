"""Histograms and sparklines."""

import numpy as np

from vlatool.pages.plots import bars, histogram


def test_a_histogram_has_a_bar_per_value() -> None:
    assert histogram([3, 3, 4], "samples").count('class="bar"') == 2
    assert histogram([], "samples") == ""


def test_a_bar_names_its_range_and_count() -> None:
    text = bars(np.array([0, 1, 3]), 10, 5, "code", "use")
    assert "<title>code: 15 to 19: 1 use</title>" in text
    assert "<title>code: 20 to 24: 3 uses</title>" in text
    assert text.count('class="bar"') == 2
