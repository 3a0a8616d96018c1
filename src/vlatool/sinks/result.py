"""Result of `preprocess`, as a document and as text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlatool.jobs.command import JobResult


@dataclass(frozen=True, kw_only=True)
class PreprocessResult(JobResult):
    """Result of a run.

    Attributes:
        empty_episodes: Episodes without samples.
        plan: Source of the numbers of a dry run.
        amounts: Counts besides those of samples and shards.
    """

    frames: int
    samples: int
    shards: int
    bytes: int
    cameras: tuple[str, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    dropped: Mapping[str, int]
    bytes_on_disk: int = 0
    empty_episodes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    next: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    amounts: Mapping[str, int] = field(default_factory=dict[str, int])

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        left_out = {"next"} if self.amounts else {"next", "amounts"}
        return {key: value for key, value in super().document().items() if key not in left_out}

    @property
    def next_command(self) -> str:
        """Command for the next step."""
        return self.next

    def summary(self) -> str:
        """Number of samples and episodes, and size."""
        shards = f" in {_counted(self.shards, 'shard')}" if self.shards else ""
        samples = f"{_counted(self.samples, 'sample')}{shards}"
        content = f"{samples} from {_counted(self.episodes, 'episode')}"
        if self.status == "planned":
            return f"would write about {content}"
        size = f"{self.bytes / 1e6:.1f} MB"
        if self.bytes_on_disk and not self.amounts:
            size += f" of shards, {self.bytes_on_disk / 1e6:.1f} MB in total"
        return f"{content} ({size})"

    def details(self) -> list[str]:
        """Cameras, fields, and what was dropped."""
        lines = [f"cameras: {', '.join(self.cameras) or 'none'}"]
        if self.action_fields:
            lines.append(f"actions: {', '.join(self.action_fields)}")
        if self.proprioception_fields:
            lines.append(f"proprioception: {', '.join(self.proprioception_fields)}")
        lines += [f"{name}: {count}" for name, count in self.amounts.items()]
        lines += [f"dropped {count}: {reason}" for reason, count in self.dropped.items()]
        return [*lines, *(f"no samples from {name}" for name in self.empty_episodes)]


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
