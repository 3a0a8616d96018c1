"""Result of `preprocess`, as a document and as text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vlatool.jobs.result import failed_lines


@dataclass(frozen=True)
class PreprocessResult:
    """Result of a run.

    Attributes:
        failures: Episodes that are missing from the output, with their errors.
        amounts: Counts besides those of samples and shards.
    """

    output: str
    episodes: int
    frames: int
    samples: int
    shards: int
    bytes: int
    cameras: tuple[str, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    dropped: Mapping[str, int]
    failures: tuple[Mapping[str, Any], ...] = ()
    resumed: int = 0
    bytes_on_disk: int = 0
    empty_episodes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    status: str = "written"
    next: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    amounts: Mapping[str, int] = field(default_factory=dict[str, int])

    def document(self) -> dict[str, Any]:
        """Result as a JSON document."""
        left_out = {"next"} if self.amounts else {"next", "amounts"}
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def text(self) -> str:
        """Result as text."""
        cameras = ", ".join(self.cameras) or "none"
        shards = f" in {_counted(self.shards, 'shard')}" if self.shards else ""
        written = f"{_counted(self.samples, 'sample')}{shards}"
        size = f"{self.bytes / 1e6:.1f} MB"
        if self.bytes_on_disk and not self.amounts:
            size += f" of shards, {self.bytes_on_disk / 1e6:.1f} MB in total"
        lines = [
            f"{self.output}: {written} from {_counted(self.episodes, 'episode')} ({size})",
            f"cameras: {cameras}",
        ]
        if self.action_fields:
            lines.append(f"actions: {', '.join(self.action_fields)}")
        if self.proprioception_fields:
            lines.append(f"proprioception: {', '.join(self.proprioception_fields)}")
        lines += [f"{name}: {count}" for name, count in self.amounts.items()]
        if self.status == "planned":
            lines[0] = (
                f"{self.output}: would write about {written} from "
                f"{_counted(self.episodes, 'episode')}; nothing was written"
            )
        if self.status == "already complete":
            lines[0] += "; was already complete, nothing to do"
        if self.resumed and self.status == "written":
            lines.append(f"{self.resumed} episodes were already written by an earlier run")
        lines += [f"dropped {count}: {reason}" for reason, count in self.dropped.items()]
        lines += [f"no samples from {name}" for name in self.empty_episodes]
        lines += failed_lines(self.failures)
        if self.next and self.status != "planned":
            lines.append(f"next: {self.next}")
        return "\n".join(lines)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
