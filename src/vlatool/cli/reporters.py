"""Reporters that need no terminal: plain lines, JSON lines, warnings only. All write to stderr."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

from vlatool.cli.output import is_main_process, to_json, write_stderr
from vlatool.events import NullReporter, Progress, per_second
from vlatool.results import one_line

REPORT_LOG = "vlatool.report"
_log = logging.getLogger(REPORT_LOG)
_log.addHandler(logging.NullHandler())  # reporters show what they log

LINE_EVERY_S = 10.0
EVENT_EVERY_S = 1.0
RATE_WINDOW_S = 60.0


class ProgressCounter:
    """Progress that is shown at an interval and at its end."""

    def __init__(
        self, name: str, total: int | None, unit: str, sink: "LoggedReporter", interval_s: float
    ) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.fields: dict[str, float | int | str] = {}
        self.is_complete = True
        self._sink = sink
        self._interval_s = interval_s
        self._started = self._shown_at = time.monotonic()
        # Times and counts of the last minute, one per second.
        self._recent: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        self._started = self._shown_at = time.monotonic()
        self._sink.begin(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_complete = exc[:1] == (None,)
        self._sink.show(self, is_end=True)

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Adds to the count; shows the progress if the interval has passed."""
        self.done += amount
        self.fields.update(fields)
        now = time.monotonic()
        if len(self._recent) > 1 and now - self._recent[-2][0] < 1.0:
            self._recent.pop()
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        if now - self._shown_at >= self._interval_s:
            self._shown_at = now
            self._sink.show(self, is_end=False)

    @property
    def elapsed_s(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def rate(self) -> float | None:
        """Units per second of the last minute; None if they took no measurable time.

        An average over the whole run would count the items that an earlier run finished: it is
        used only if the first unit took long and the others came with it.
        """
        if not self._recent:
            return None
        (first_at, first_done), (last_at, last_done) = self._recent[0], self._recent[-1]
        if last_at == first_at and per_second(1, first_at - self._started) is not None:
            first_at, first_done = self._started, 0
        return per_second(last_done - first_done, last_at - first_at)

    @property
    def remaining_s(self) -> float | None:
        """Remaining seconds at the current rate; None if unknown.

        The first units are not enough, because they wait for workers to start.
        """
        has_interval = len(self._recent) > 1 and self._recent[-1][0] > self._recent[0][0]
        if self.total is None or not has_interval or not self.rate:
            return None
        return max(self.total - self.done, 0) / self.rate


class LoggedReporter(NullReporter):
    """Reporter that logs notes, warnings and metrics, for the log file; bases show them, too."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if _log.isEnabledFor(logging.INFO):
            _log.info("step %s: %s", step, to_json(values, indent=None))

    def note(self, message: str) -> None:
        _log.info("%s", message)

    def warn(self, code: str, message: str) -> None:
        _log.warning("%s [%s]", message, code)

    def begin(self, count: ProgressCounter) -> None:
        """Shows nothing before the first interval."""

    def show(self, count: ProgressCounter, *, is_end: bool) -> None:
        """Shows the progress."""


class LineReporter(LoggedReporter):
    """Reporter that writes a plain line every ten seconds and at the end of each bar.

    The metrics are in the fields of the bar; metrics and images are files of the run.
    """

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        return ProgressCounter(name, total, unit, self, LINE_EVERY_S)

    def show(self, count: ProgressCounter, *, is_end: bool) -> None:
        write_stderr(progress_line(count, is_end=is_end))

    def note(self, message: str) -> None:
        super().note(message)
        write_stderr(one_line(message))

    def warn(self, code: str, message: str) -> None:
        super().warn(code, message)
        write_stderr(f"warning: {one_line(message)} [{code}]")


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


class JsonReporter(LoggedReporter):
    """Reporter that writes one JSON object per line."""

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        return ProgressCounter(name, total, unit, self, EVENT_EVERY_S)

    def show(self, count: ProgressCounter, *, is_end: bool) -> None:
        remaining_s = count.remaining_s
        if is_end:
            remaining_s = None
        self._event(
            "progress",
            name=count.name,
            unit=count.unit,
            done=count.done,
            total=count.total,
            rate=_round(count.rate, 3),
            seconds_left=_round(remaining_s, 1),
            ended=is_end,
            complete=is_end and count.is_complete,
            fields=count.fields,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        self._event("metrics", step=step, values=values)

    def note(self, message: str) -> None:
        super().note(message)
        self._event("note", message=message)

    def warn(self, code: str, message: str) -> None:
        super().warn(code, message)
        self._event("warning", code=code, message=message)

    def _event(self, kind: str, **info: Any) -> None:
        write_stderr(to_json({"event": kind, **info}, indent=None))


class SilentReporter(LoggedReporter):
    """Reporter that writes only warnings, and only on rank 0."""

    def warn(self, code: str, message: str) -> None:
        super().warn(code, message)
        if is_main_process():
            write_stderr(f"warning: {one_line(message)} [{code}]")


def progress_line(count: ProgressCounter, *, is_end: bool) -> str:
    """`preprocess: 40/120 episodes (33 %), 4.1/s, 20 s left, failures 2`."""
    counts = f"{count.name}: {format_count(count.done, count.total, count.unit)}"
    if count.total:
        counts += f" ({100 * count.done // count.total} %)"
    parts = [counts]
    if count.rate is not None:
        parts.append(format_rate(count.rate, count.unit))
    if is_end and count.is_complete:
        parts.append(format_duration(count.elapsed_s))
    elif is_end:
        parts.append(f"stopped after {format_duration(count.elapsed_s)}")
    elif count.remaining_s is not None:
        parts.append(f"{format_duration(count.remaining_s)} left")
    for name, value in count.fields.items():
        parts.append(f"{name} {format_number(value)}")
    return ", ".join(parts)


def format_count(done: int, total: int | None, unit: str) -> str:
    """`40/120 episodes`; `1.2 MB/3.4 GB` for bytes."""
    from vlatool.storage.tree import size_text

    if unit == "bytes":
        return size_text(done) if total is None else f"{size_text(done)}/{size_text(total)}"
    if total is None:
        return f"{done} {unit}"
    return f"{done}/{total} {unit.removesuffix('s') if total == 1 else unit}"


def format_rate(rate: float, unit: str) -> str:
    """`4.1/s`; `1.2 MB/s` for bytes."""
    from vlatool.storage.tree import size_text

    return f"{size_text(round(rate))}/s" if unit == "bytes" else f"{format_number(rate)}/s"


def format_number(value: float | int | str) -> str:
    """Number with at most four significant digits; text unchanged."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
