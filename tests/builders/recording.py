"""A reporter that remembers what it was told; a substitute at the protocol."""

from vlatool.events import NullReporter


class Recorder(NullReporter):
    """Keeps warnings and notes."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def warn(self, code: str, message: str) -> None:
        """Keeps a warning."""
        self.warnings.append((code, message))

    def note(self, message: str) -> None:
        """Keeps a note."""
        self.notes.append(message)
