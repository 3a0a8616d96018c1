"""Progress bars on a terminal. Imported only if stderr is a terminal, because rich is slow."""

import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Self, cast

from rich.console import Console  # noqa: TID253 - this module is loaded for a terminal only
from rich.progress import (  # noqa: TID253
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column  # noqa: TID253
from rich.text import Text  # noqa: TID253

from vlatool.cli.output import Stderr
from vlatool.cli.reporters import RateMeter, format_count, format_number, format_rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MIN_BAR_WIDTH, _MAX_BAR_WIDTH = 10, 40


class RichReporter:
    """Live bars on stderr: count and time left, then rate and extra fields if they fit."""

    def __init__(self) -> None:
        self._console = Console(file=cast(IO[str], Stderr()), highlight=False)
        bar_width = max(_MIN_BAR_WIDTH, min(_MAX_BAR_WIDTH, self._console.width // 5))
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width, table_column=Column(no_wrap=True)),
            _CountColumn("", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(
                compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
            ),
            _RateColumn("", table_column=Column()),
            console=self._console,
        )
        self._active = 0

    def progress(self, name: str, total: int | None, unit: str) -> "RichBar":
        """Starts a bar."""
        return RichBar(self, self._bars, name, total, unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Prints nothing: the metrics are in the fields of the bar and in metrics.jsonl."""

    def images(self, step: int, images: "Mapping[str, NDArray[np.uint8]]") -> None:
        """Prints nothing: the images are files of the run."""

    def note(self, message: str) -> None:
        """Prints a message above the bars."""
        self._console.print(message, markup=False, soft_wrap=True)

    def warn(self, code: str, message: str) -> None:
        """Prints a warning above the bars."""
        self._console.print(
            f"warning: {message} [{code}]", style="yellow", markup=False, soft_wrap=True
        )

    def open_bar(self) -> None:
        """Counts a new bar; the first starts the display."""
        self._active += 1
        if self._active == 1:
            self._bars.start()

    def close_bar(self) -> None:
        """Counts a closed bar; the last stops the display and restores the terminal."""
        self._active -= 1
        if self._active == 0:
            self._bars.stop()
            for task in self._bars.task_ids:
                self._bars.remove_task(task)


class RichBar:
    """One bar of the display."""

    def __init__(
        self, reporter: RichReporter, bars: Progress, name: str, total: int | None, unit: str
    ) -> None:
        self._reporter = reporter
        self._bars = bars
        self._name = name
        self._total = total
        self._unit = unit
        self._task = TaskID(0)
        self._fields: dict[str, float | int | str] = {}
        self._meter = RateMeter()
        self._done = 0

    def __enter__(self) -> Self:
        self._meter = RateMeter()
        self._task = self._bars.add_task(
            self._name, total=self._total, unit=self._unit, shown="-/s"
        )
        self._reporter.open_bar()
        return self

    def __exit__(self, *exc: object) -> None:
        self._reporter.close_bar()

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Advances the bar and shows rate and fields."""
        self._fields.update(fields)
        self._done += amount
        self._meter.add(time.monotonic(), self._done)
        rate = self._meter.rate
        parts = ["-/s" if rate is None else format_rate(rate, self._unit)]
        parts += [f"{name} {format_number(value)}" for name, value in self._fields.items()]
        self._bars.update(self._task, advance=amount, shown="  ".join(parts))


class _CountColumn(TextColumn):
    """Completed and total units: `12/80 episodes`."""

    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        text = format_count(int(task.completed), total, task.fields["unit"])
        return Text(text, style="progress.download")


class _RateColumn(TextColumn):
    """Units per second of the last minute, and extra fields."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["shown"], no_wrap=True, overflow="ellipsis")
