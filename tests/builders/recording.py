"""Reporter that records its calls, for tests."""

from vlatool.events import NullReporter, Progress


class Recorder(NullReporter):
    """Records warnings, notes, and the name and total of each progress bar."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None]] = []
        self.warnings: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Records name and total."""
        self.bars.append((name, total))
        return super().progress(name, total, unit)

    def warn(self, code: str, message: str) -> None:
        """Records a warning."""
        self.warnings.append((code, message))

    def note(self, message: str) -> None:
        """Records a note."""
        self.notes.append(message)
