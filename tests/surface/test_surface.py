"""Comparison of the interface with the recorded one."""

import pytest

from tests.surface.record import PARTS, differences, read_records


@pytest.mark.parametrize("part", PARTS)
def test_interface_equals_the_recorded_one(part: str) -> None:
    changed = differences(read_records(part), PARTS[part]())
    assert not changed, (
        f"the interface has changed:\n{changed}\n"
        "If this is intended: `python -m tests.surface.record`, and a line in CHANGELOG.md."
    )
