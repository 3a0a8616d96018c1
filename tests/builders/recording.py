"""A reporter that remembers what it was told; a substitute at the protocol."""

from vlatool.events import NullReporter, Progress


class Recorder(NullReporter):
    """Keeps warnings, notes, and the name and total of each bar."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None]] = []
        self.warnings: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        """Keeps name and total."""
        self.bars.append((name, total))
        return super().progress(name, total, unit)

    def warn(self, code: str, message: str) -> None:
        """Keeps a warning."""
        self.warnings.append((code, message))

    def note(self, message: str) -> None:
        """Keeps a note."""
        self.notes.append(message)
