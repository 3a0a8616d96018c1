"""Reporter that records its calls, for tests."""

from vlatool.events import NullProgress, NullReporter, Progress


class RecordedBar(NullProgress):
    """Progress bar that keeps its units."""

    def __init__(self) -> None:
        self.amounts: list[int] = []  # units of each call
        self.fields: dict[str, float | int | str] = {}  # fields of the last call

    @property
    def done(self) -> int:
        """Sum of all units."""
        return sum(self.amounts)

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        """Adds units."""
        self.amounts.append(amount)
        self.fields = fields


class Recorder(NullReporter):
    """Records warnings, notes, and the name, the total and the last state of each progress bar."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None]] = []
        self.last_bar = RecordedBar()
        self.warnings: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        del unit
        self.bars.append((name, total))
        self.last_bar = RecordedBar()
        return self.last_bar

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))

    def note(self, message: str) -> None:
        self.notes.append(message)
