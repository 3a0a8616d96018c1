"""Minimal sink of JSON lines, as a contributor would write it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from vlatool.episode import Episode, EpisodeRef
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.recordings.writing import Estimate, Sink, SinkConfig, SinkSetup, SinkSummary
from vlatool.storage.atomic import open_atomic, remove_file, write_json
from vlatool.transforms.relative import stored_from

INDEX = "index.json"


class ToyConfig(SinkConfig):
    """Config of the sink."""

    type: Literal["toy"] = Field(default="toy", description="Sink: JSON lines.")
    every: int = Field(default=1, ge=1, description="Frames from one line to the next.")


@dataclass(frozen=True)
class Lines:
    """Writes one episode; picklable."""

    output: Path
    every: int

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        name, frames = f"episodes/{ref.id}.jsonl", range(0, episode.num_frames, self.every)
        with open_atomic(self.output / name) as file:
            for frame in frames:
                row = {field: rows[frame].tolist() for field, rows in episode.lowdim.items()}
                file.write(json.dumps({"task": episode.task, **row}).encode() + b"\n")
        entry = replace(file_entry(self.output, name), samples=len(frames))
        counts = {"frames": episode.num_frames, "samples": len(frames)}
        return Receipt(ref.id, counts=counts, files=(entry,))


class ToySink(Sink):
    """Sink that writes a file with a line per frame for each episode, and an index."""

    Config: ClassVar[type[SinkConfig]] = ToyConfig
    owned: ClassVar[Sequence[str]] = ("episodes/*.jsonl", INDEX)
    volatile: ClassVar[Sequence[str]] = ()
    next_step: ClassVar[str] = ""

    def __init__(self, config: ToyConfig, setup: SinkSetup) -> None:
        self._setup, self._every = setup, config.every
        self.work = Lines(setup.output, config.every)
        self.fields = {name: spec.width for name, spec in setup.survey.fields.items()}
        actions = [stored_from(name, self.fields) for name in setup.survey.action_fields]
        self.action_fields = setup.policy_actions(self.fields, actions)
        self.proprioception_fields = setup.survey.proprioception_fields

    def begin(self) -> None:
        """Removes the index."""
        remove_file(self._setup.output / INDEX)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Writes the index."""
        files: list[FileEntry] = [file for receipt in receipts for file in receipt.files]
        lines = {file.path: file.samples or 0 for file in files}
        write_json(self._setup.output / INDEX, lines)
        size = sum(file.bytes for file in files)
        files.append(file_entry(self._setup.output, INDEX))
        return SinkSummary(sum(lines.values()), size, tuple(files))

    def estimate(self) -> Estimate:
        """Estimate from the number of frames."""
        frames = self._setup.survey.frames
        return Estimate(None if frames is None else -(-frames // self._every))
