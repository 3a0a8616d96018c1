"""Facts as plain text."""

import pytest

from vlatool.report.text import indices_text, number_text, pairs, range_text, text_table


def test_pairs_are_aligned_and_empty_values_left_out() -> None:
    text = pairs({"on disk": "4 kB", "cameras": ("left", "right"), "padding": "", "files": []})
    assert text.splitlines() == ["on disk  4 kB", "cameras  left", "         right"]


def test_numbers_of_a_table_are_aligned_to_the_right_and_its_rows_limited() -> None:
    table = text_table("Tasks", ("task", "episodes"), [("pick", 9), ("place", 10)])
    assert table.splitlines() == [
        "Tasks",
        "  task   episodes",
        "  pick          9",
        "  place        10",
    ]

    lines = text_table("Tasks", ("task",), [(number,) for number in range(100)]).splitlines()
    assert lines[-1] == "  ... and 40 more; use --json for all"

    assert text_table("Tasks", ("task",), []) == ""


@pytest.mark.parametrize(
    ("values", "text"), [([1.0, 2.5], "1 .. 2.5"), ([3.0, None, 3.0], "3"), ([None], "-")]
)
def test_a_range_has_both_ends(values: list[float | None], text: str) -> None:
    assert range_text(values) == text


def test_numbers_have_four_digits_and_consecutive_indices_are_a_range() -> None:
    assert [number_text(value) for value in (1 / 3, None)] == ["0.3333", "-"]

    assert indices_text([0, 1, 2, 7]) == "0-2, 7"
    assert indices_text(range(0, 40, 2), limit=2) == "0, 2, ..."
