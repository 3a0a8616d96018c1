"""Parts of an HTML page."""

import pytest

from vlatool.errors import DataError
from vlatool.pages.layout import Section, card, evenly_spaced, group, page, table, tiles


@pytest.mark.parametrize(
    ("total", "count", "positions"), [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (0, 3, []), (4, 0, [])]
)
def test_positions_are_the_centers_of_equal_parts(
    total: int, count: int, positions: list[int]
) -> None:
    assert evenly_spaced(total, count) == positions


def test_cards_groups_and_sections_without_content_show_errors_or_nothing() -> None:
    def fail() -> Section:
        raise DataError("a.tar: is torn & empty")

    assert "is torn &amp; empty" in card("sample", fail).body

    assert group("Samples (0 of 0)", []) == []
    assert len(group("Samples (1 of 1)", [Section("first", "body")])) == 2

    text = page("raw", "source", [Section("Overview", "<b>1</b>"), Section("Problems", "")])
    assert ">Overview</a>" in text
    assert "Problems" not in text


def test_a_table_escapes_text_and_aligns_numbers() -> None:
    text = table(("task", "episodes"), [("<pick>", 3)], numbers=(1,))
    assert "<td>&lt;pick&gt;</td><td class=number>3</td>" in text


def test_the_name_below_a_one_is_no_plural_and_empty_tiles_are_left_out() -> None:
    text = tiles({"episodes": "1", "frames": 40, "split": "", "fps": None})
    assert "<b>1</b><span>episode</span>" in text
    assert "<b>40</b><span>frames</span>" in text
    assert "split" not in text
