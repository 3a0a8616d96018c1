"""How long work tells its story: reporters are handed in, the library never prints."""

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self


class Progress(Protocol):
    """One bar of work; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Counts `amount` units as done; `fields` are shown beside the bar."""
        ...


class Reporter(Protocol):
    """Where a workflow tells what it does."""

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Starts a bar of `total` units, or of unknown length.

        Args:
            name: What is going on.
            total: How many units there are, if that is known.
            unit: What `advance` counts, in the plural.
        """
        ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers measured at an optimizer step."""
        ...

    def note(self, message: str) -> None:
        """Something worth knowing."""
        ...

    def warn(self, code: str, message: str) -> None:
        """Something the user should look at; `code` is stable."""
        ...


class NullProgress:
    """A bar nobody sees."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Does nothing."""


class NullReporter:
    """The silent default."""

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Returns a bar nobody sees."""
        del name, total, unit
        return NullProgress()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def note(self, message: str) -> None:
        """Does nothing."""

    def warn(self, code: str, message: str) -> None:
        """Does nothing."""


NULL = NullReporter()
