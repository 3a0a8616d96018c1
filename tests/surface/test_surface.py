"""What users and programs see is what is recorded."""

import pytest

from tests.surface.record import PARTS, differences, written


@pytest.mark.parametrize("part", PARTS)
def test_the_interface_is_the_recorded_one(part: str) -> None:
    changed = differences(written(part), PARTS[part]())
    assert not changed, (
        f"the interface has changed:\n{changed}\n"
        "If this is meant: `python -m tests.surface.record`, and a line in CHANGELOG.md."
    )
