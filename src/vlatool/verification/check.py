"""What every check is given: how much is looked into, what was looked at, who is told."""

from dataclasses import dataclass, field

from vlatool.events import NULL, Reporter


@dataclass(frozen=True)
class Depth:
    """How much is looked into.

    Attributes:
        samples: Samples whose contents are read; None for all.
        is_full: Recompute statistics, decode every picture.
        is_quick: Compare no digests.
    """

    samples: int | None = 200
    is_full: bool = False
    is_quick: bool = False


@dataclass
class Checked:
    """How much was looked at."""

    files: int = 0
    bytes: int = 0
    samples: int = 0
    samples_read: int = 0
    pictures: int = 0
    episodes: int = 0

    def add(self, **amounts: int) -> None:
        """Counts more."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)


@dataclass(frozen=True)
class Check:
    """One verification.

    Attributes:
        depth: How much is looked into.
        checked: Counts what was.
        reporter: Shows progress.
    """

    depth: Depth = Depth()
    checked: Checked = field(default_factory=Checked)
    reporter: Reporter = NULL
