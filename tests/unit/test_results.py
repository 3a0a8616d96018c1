"""Documents and texts of results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vlatool.results import MERGED, OPTIONAL, UNLISTED, Result, columns


@dataclass(frozen=True)
class Part:
    place: Path
    hidden: int = field(default=0, metadata=UNLISTED)


@dataclass(frozen=True)
class Whole(Result):
    rows_key: ClassVar[str] = "parts"

    parts: tuple[Part, ...]
    figures: Mapping[str, Any] = field(metadata=MERGED)
    page: str | None = field(metadata=OPTIONAL)
    status: str = "written"

    def lines(self) -> list[str]:
        return [f"{len(self.parts)} parts"]

    @property
    def next_command(self) -> str:
        return "vlatool verify"


def test_document_has_the_fields_in_order_by_their_metadata() -> None:
    result = Whole((Part(Path("a"), 1),), {"loss": 0.5}, None)
    document = {"parts": ({"place": "a"},), "loss": 0.5, "status": "written"}
    assert list(result.document().items()) == list(document.items())
    assert Whole((), {}, "page.html").document()["page"] == "page.html"
    assert result.rows() == ({"place": "a"},)


@pytest.mark.parametrize(
    ("status", "end"), [("written", "\nnext: vlatool verify"), ("planned", "")]
)
def test_text_has_the_next_command_unless_it_is_of_a_dry_run(status: str, end: str) -> None:
    assert Whole((), {}, None, status).text() == f"0 parts{end}"


def test_columns_are_aligned_and_empty_ones_say_so() -> None:
    assert columns([("a", "bc", "d"), ("abc", "", "")]) == "a    bc  d\nabc"
    assert columns([]) == "none"
