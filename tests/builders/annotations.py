"""Columns of annotations, as the `lerobot` library writes them: types are inferred."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.builders.lerobot import Columns, lerobot_dataset

PERSISTENT = (
    ("task_aug", 0.0, "set the ball into the box"),
    ("subtask", 0.0, "reach the ball"),
    ("subtask", 0.3, "lift the ball"),
)


def entry(style: str | None, text: str | None, **keys: Any) -> dict[str, Any]:
    """An annotation; those of `language_events` have no timestamp."""
    head = {"role": "assistant", "content": text, "style": style}
    return {**head, **keys} | {"camera": keys.get("camera"), "tool_calls": keys.get("tool_calls")}


def annotated(
    root: Path,
    persistent: Sequence[tuple[str, float | None, str | None]] = PERSISTENT,
    events: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    change: Callable[[Columns], Any] = lambda _columns: None,
    **options: Any,
) -> Path:
    """A LeRobot set without cameras, of 6 and 4 frames at 10 Hz, the first one annotated."""

    def add(number: int, columns: Columns) -> None:
        rows = len(columns["index"])
        entries = [entry(style, text, timestamp=time) for style, time, text in persistent]
        fired = [[*(events or {}).get(row, ())] for row in range(rows)]
        empty: list[list[Any]] = [[] for _ in range(rows)]
        columns["language_persistent"] = pa.array([entries] * rows if number == 0 else empty)
        columns["language_events"] = pa.array(fired if number == 0 else empty)
        if number == 0:
            change(columns)

    return lerobot_dataset(root, cameras={}, change=add, **options)
