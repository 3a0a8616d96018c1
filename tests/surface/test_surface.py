"""Comparison of the interface with the recorded one."""

import pytest

from tests.surface.record import PARTS, differences, read_records
from tests.surface.source import FINDINGS_PAGE, findings_page


@pytest.mark.parametrize("part", PARTS)
def test_interface_equals_the_recorded_one(part: str) -> None:
    changed = differences(read_records(part), PARTS[part]())
    assert not changed, (
        f"the interface has changed:\n{changed}\n"
        "If this is intended: `python -m tests.surface.record`, and a line in CHANGELOG.md."
    )


def test_page_of_findings_has_all_codes() -> None:
    assert FINDINGS_PAGE.read_text() == findings_page(), "run `python -m tests.surface.record`"
