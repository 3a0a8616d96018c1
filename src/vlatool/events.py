"""Progress reporting. Functions take a `Reporter`; the library itself never prints."""

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Signals with which schedulers, terminals and users ask a command to end.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# Clocks and scheduling make rates over a shorter time meaningless.
_MIN_MEASURED_S = 0.1


def per_second(amount: float, seconds: float) -> float | None:
    """Rate of an amount; None if the time is too short to be measured."""
    return amount / seconds if seconds >= _MIN_MEASURED_S else None


class Progress(Protocol):
    """Progress bar; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Adds `amount` finished units; `fields` are shown next to the bar."""
        ...


class Reporter(Protocol):
    """Receiver of the progress, metrics, notes and warnings of a workflow."""

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Starts a progress bar.

        Args:
            name: Title of the bar.
            total: Number of units; None if unknown.
            unit: Name of the units that `advance` counts, in the plural.
        """
        ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics of an optimizer step."""
        ...

    def images(self, step: int, images: "Mapping[str, NDArray[np.uint8]]") -> None:
        """Logs images of an optimizer step, uint8 [N, H, W, 3] by name."""
        ...

    def note(self, message: str) -> None:
        """Logs an information."""
        ...

    def warn(self, code: str, message: str) -> None:
        """Logs a warning; `code` is stable."""
        ...


class NullProgress:
    """Progress bar that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Does nothing."""


class NullReporter:
    """Reporter that discards everything; the default."""

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Returns a progress bar that shows nothing."""
        return NullProgress()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def images(self, step: int, images: "Mapping[str, NDArray[np.uint8]]") -> None:
        """Does nothing."""

    def note(self, message: str) -> None:
        """Does nothing."""

    def warn(self, code: str, message: str) -> None:
        """Does nothing."""


NULL = NullReporter()


def counted(count: int, singular: str, plural: str = "") -> str:
    """A count with its noun in the right number, such as `1 episode` or `3,000 episodes`.

    Args:
        count: Number of things.
        singular: Name of one of them; a verb may follow.
        plural: Name of several; by default `singular` with an s.
    """
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"
