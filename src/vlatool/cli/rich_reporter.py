"""Progress bars on a terminal. Imported only if stderr is a terminal, because rich is slow."""

from typing import IO, cast

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
from vlatool.cli.reporters import (
    LoggedReporter,
    ProgressCounter,
    format_count,
    format_number,
    format_rate,
)
from vlatool.results import one_line, printable

_MIN_BAR_WIDTH = 10
_MAX_BAR_WIDTH = 40


class RichReporter(LoggedReporter):
    """Live bars on stderr: count and time left, then rate and extra fields if they fit."""

    def __init__(self) -> None:
        self._console = Console(file=cast(IO[str], Stderr()), highlight=False)
        bar_width = max(_MIN_BAR_WIDTH, min(_MAX_BAR_WIDTH, self._console.width // 5))
        no_wrap = Column(no_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=no_wrap),
            BarColumn(bar_width, table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[count]}",
                style="progress.download",
                markup=False,
                table_column=Column(no_wrap=True),
            ),
            TimeRemainingColumn(
                compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
            ),
            _RateColumn("", table_column=Column()),
            console=self._console,
        )
        self._tasks: dict[ProgressCounter, TaskID] = {}

    def progress(self, name: str, total: int | None, unit: str) -> ProgressCounter:
        return ProgressCounter(name, total, unit, self, interval_s=0.0)

    def begin(self, count: ProgressCounter) -> None:
        """Adds a bar; the first starts the display."""
        if not self._tasks:
            self._bars.start()
        self._tasks[count] = self._bars.add_task(
            printable(count.name),
            total=count.total,
            count=format_count(0, count.total, count.unit),
            shown="-/s",
        )

    def show(self, count: ProgressCounter, *, is_end: bool) -> None:
        """Shows rate and fields; the end of the last bar restores the terminal."""
        rate = "-/s" if count.rate is None else format_rate(count.rate, count.unit)
        parts = [rate, *(f"{name} {format_number(count.fields[name])}" for name in count.fields)]
        self._bars.update(
            self._tasks[count],
            completed=count.done,
            count=format_count(count.done, count.total, count.unit),
            shown=printable("  ".join(parts)),
        )
        if not is_end:
            return
        del self._tasks[count]
        if not self._tasks:
            self._bars.stop()
            for task in self._bars.task_ids:
                self._bars.remove_task(task)

    def note(self, message: str) -> None:
        """Prints a message above the bars."""
        super().note(message)
        self._console.print(printable(one_line(message)), markup=False, soft_wrap=True)

    def warn(self, code: str, message: str) -> None:
        super().warn(code, message)
        text = printable(f"warning: {one_line(message)} [{code}]")
        self._console.print(text, style="yellow", markup=False, soft_wrap=True)


class _RateColumn(TextColumn):
    """Units per second of the last minute, and extra fields; cut where there is no room."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["shown"], no_wrap=True, overflow="ellipsis")
