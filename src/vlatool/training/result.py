"""Result of `train`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TrainResult:
    """Result of a run."""

    output: str
    status: str
    parameters: int
    steps: int
    samples: int
    unused_samples: int
    loss: float | None
    checkpoint: str | None
    checkpoint_steps: tuple[int, ...]
    dataset_samples: int
    blocks_in_use: int
    dropped: Mapping[str, int]
    acts: bool
    seconds: float

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return asdict(self)

    def text(self) -> str:
        """The result as text."""
        size = f"{self.parameters / 1e6:.2f} M parameters"
        if self.status == "planned":
            return (
                f"{self.output}: would train {size} for {self.steps} steps on "
                f"{self.dataset_samples} samples, about {self.blocks_in_use} open shards; "
                f"checkpoints at {self.checkpoint_steps}; nothing was written"
            )
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        lines = [f"{self.output}: {self.status}, {size}, {self.steps} steps{loss}"]
        if self.unused_samples:
            lines.append(f"{self.unused_samples} samples of the budget do not fill a step")
        for reason, count in self.dropped.items():
            lines.append(f"{count} samples were dropped: {reason.replace('_', ' ')}")
        lines.append(f"checkpoint: {self.checkpoint}")
        if self.acts:
            lines.append(f"next: vlatool eval open-loop {self.output} DATA")
        return "\n".join(lines)
