"""Progress bars on a terminal. Imported only if stderr is a terminal, because rich is slow."""

import time
from collections.abc import Iterable, Mapping
from math import isfinite, log
from statistics import fmean
from typing import IO, Self, cast

from rich.console import (  # noqa: TID253 - this module is loaded for a terminal only
    Console,
    RenderableType,
)
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
from vlatool.events import NullReporter
from vlatool.results import one_line, printable

_MIN_BAR_WIDTH = 10
_MAX_BAR_WIDTH = 40
_MIN_CURVE_WIDTH = 8
_MAX_CURVE_WIDTH = 60
_MAX_POINTS = 128
_METRIC_FIELDS = {"loss", "samples/s"}  # fields of a bar that the line of metrics shows


class RichReporter(NullReporter):
    """Live bars on stderr: count and time left, then rate and extra fields if they fit.

    Below the bars of a training is a line with its metrics and the curve of its loss.
    """

    def __init__(self) -> None:
        self._console = Console(file=cast(IO[str], Stderr()), highlight=False)
        bar_width = max(_MIN_BAR_WIDTH, min(_MAX_BAR_WIDTH, self._console.width // 5))
        self._bars = _Bars(
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
        return RichBar(self, self._bars, name, total, unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self._bars.metrics = self._bars.metrics or _MetricsLine()
            self._bars.metrics.update(values)

    def note(self, message: str) -> None:
        """Prints a message above the bars."""
        self._console.print(printable(one_line(message)), markup=False, soft_wrap=True)

    def warn(self, code: str, message: str) -> None:
        text = printable(f"warning: {one_line(message)} [{code}]")
        self._console.print(text, style="yellow", markup=False, soft_wrap=True)

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
            self._bars.metrics = None
            for task in self._bars.task_ids:
                self._bars.remove_task(task)


class RichBar:
    """One bar of the display."""

    def __init__(
        self, reporter: RichReporter, bars: "_Bars", name: str, total: int | None, unit: str
    ) -> None:
        self._reporter = reporter
        self._bars = bars
        self._name = printable(name)
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
        for name, value in self._fields.items():
            if self._bars.metrics is None or name not in _METRIC_FIELDS:
                parts.append(f"{name} {format_number(value)}")
        self._bars.update(self._task, advance=amount, shown=printable("  ".join(parts)))


class _Bars(Progress):
    """Bars with a line of metrics below them."""

    metrics: "_MetricsLine | None" = None  # the line; None outside of a training

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.metrics is not None:
            text = self.metrics.text(self.console.width)
            yield Text(text, no_wrap=True, overflow="ellipsis")


class _MetricsLine:
    """The newest metrics of a training, and the curve of its loss."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._curve = LossCurve()

    def update(self, values: Mapping[str, float]) -> None:
        """Replaces the metrics, and adds the loss to the curve."""
        self._values.update(values)
        self._curve.add(values["loss"])

    def text(self, width: int) -> str:
        """`loss 0.0123 CURVE 84.3 samples/s  1.2 GB  mfu 31.2 %`; the curve fills `width`."""
        from vlatool.report.text import spark_text

        values = self._values
        loss = f"loss {format_number(values['loss'])}"
        parts = [f"{format_number(values['samples_per_second'])} samples/s"]
        if values.get("memory_gb"):
            parts.append(f"{values['memory_gb']:.3g} GB")
        if "mfu" in values:
            parts.append(f"mfu {100 * values['mfu']:.3g} %")
        rest = "  ".join(parts)
        free_width = width - len(loss) - len(rest) - 2
        curve_width = max(_MIN_CURVE_WIDTH, min(_MAX_CURVE_WIDTH, free_width))
        return f"{loss} {spark_text(self._curve.points(), curve_width)} {rest}"


class LossCurve:
    """Losses of a run as at most 128 means of equally many reports; not finite ones are left out.

    The last mean may be of fewer.
    """

    def __init__(self) -> None:
        self._points: list[float] = []
        self._rest: list[float] = []
        self._reports = 1

    def add(self, loss: float) -> None:
        if not isfinite(loss):
            return
        self._rest.append(loss)
        if len(self._rest) == self._reports:
            self._points.append(fmean(self._rest))
            self._rest = []
        if len(self._points) == _MAX_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [fmean(pair) for pair in pairs]
            self._reports *= 2

    def points(self) -> list[float]:
        """The means, oldest first; their logarithms where all are positive."""
        means = list(self._points)
        if self._rest:
            means.append(fmean(self._rest))
        if min(means, default=0.0) > 0.0:
            return [log(mean) for mean in means]
        return means


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
