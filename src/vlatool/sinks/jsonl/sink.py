"""The `jsonl` sink: windows of the FUTURE-VLA pipeline, one JSON lines file per episode."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from vlatool.artifacts.codes.format import IMAGES_NAME
from vlatool.artifacts.windows.format import (
    MANIFEST_NAME,
    OWNED_FILES,
    WindowManifest,
    write_manifest,
)
from vlatool.episode import Survey
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.sinks.base import Estimate, SinkConfig, SinkSetup, SinkSummary, Work
from vlatool.sinks.jsonl.config import JsonlConfig
from vlatool.sinks.jsonl.episodes import EpisodeWriter, kinds_at
from vlatool.storage.atomic import remove_empty, remove_file
from vlatool.storage.uri import location
from vlatool.transforms.relative import relative_names, stored_from

_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class JsonlSink:
    """Writes raw windows and their images. Source: reference/future-vla 1."""

    Config: ClassVar[type[SinkConfig]] = JsonlConfig
    owned: ClassVar[Sequence[str]] = OWNED_FILES
    volatile: ClassVar[Sequence[str]] = ()
    next_step: ClassVar[str] = "vlatool verify {output}"
    has_arrays: ClassVar[bool] = False

    def __init__(self, config: JsonlConfig, setup: SinkSetup) -> None:
        survey = setup.survey
        self._config, self._setup = config, setup
        possible = _possible_fields(survey)
        self.action_fields: tuple[str, ...] = setup.policy_actions(possible, survey.action_fields)
        self.fields: Mapping[str, int] = {name: possible[name] for name in self.action_fields}
        self.proprioception_fields: tuple[str, ...] = ()
        groups = (
            group for group in survey.pose_groups if {*relative_names(group)} & {*self.fields}
        )
        numbers = [ref.number for ref in setup.refs]
        self._work = EpisodeWriter(
            setup.output,
            config,
            tuple(survey.cameras),
            self.action_fields,
            _action_width(config, survey, self.fields),
            tuple(groups),
            {source: _folder_name(source) for source in {ref.source for ref in setup.refs}}
            | ({ref.source: config.name for ref in setup.refs} if config.name else {}),
            None not in numbers and len(set(numbers)) == len(numbers),
        )
        self.work: Work = self._work

    def begin(self) -> None:
        """Removes the manifest and folders that an earlier run left empty."""
        output = self._setup.output
        remove_file(output / MANIFEST_NAME)
        remove_empty(output / IMAGES_NAME)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Writes the manifest, the last file."""
        files: list[FileEntry] = []
        episodes = 0
        for receipt in receipts:
            files += receipt.files
            episodes += bool(receipt.files)
        if not episodes:
            raise DataError(
                "no episode was written",
                hint="select more episodes",
                code="data.no_samples",
                details={"dropped": dict(run.dropped)},
            )
        manifest = self._manifest(episodes, run)
        write_manifest(self._setup.output, manifest)
        size = sum(file.bytes for file in files)
        files.append(file_entry(self._setup.output, MANIFEST_NAME))
        counts = {"pictures": manifest.pictures, "untouched": manifest.untouched}
        return SinkSummary(manifest.samples, size, tuple(files), counts)

    def estimate(self) -> Estimate:
        """Estimate from the number of frames."""
        frames = self._setup.survey.frames
        if frames is None:
            return Estimate(None)
        lines = len(kinds_at(self._config.qa_mode, 0, ""))
        return Estimate(frames * lines, {"pictures": frames * len(self._work.cameras)})

    def _manifest(self, episodes: int, run: JobRun) -> WindowManifest:
        survey, config = self._setup.survey, self._config
        fields = [survey.fields[stored_from(name, survey.fields)] for name in self.action_fields]
        names = [name for field in fields for name in field.names]
        relative = [
            name not in survey.fields for name, width in self.fields.items() for _ in range(width)
        ]
        counts = {key: run.sums.get(key, 0) for key in _COUNT_KEYS}
        size = config.resize_images_size
        return WindowManifest(
            names=tuple(sorted(set(self._work.prefixes.values()))),
            cameras=self._work.cameras,
            fps=survey.fps,
            action_fields=self.action_fields,
            action_names=tuple(names) if len(names) == self._work.action_width else (),
            action_width=self._work.action_width,
            past_steps=config.past_steps,
            future_steps=config.future_steps,
            qa_mode=config.qa_mode,
            image_size=size if isinstance(size, tuple) else None,
            relative_dimensions=tuple(np.flatnonzero(relative).tolist()),
            episodes=episodes,
            **counts,
        )


_COUNT_KEYS = ("frames", "samples", "pictures", "untouched")


def _folder_name(source: str) -> str:
    """Name of a source's folder with all characters replaced that file names do not allow."""
    name = location(source).resolve().name.partition("@")[0]
    return _NO_FILE_NAME.sub("_", name).strip("_") or "data"


def _possible_fields(survey: Survey) -> dict[str, int]:
    """Map from the fields that an action can have to their widths: numeric ones, relative poses."""
    widths = {name: spec.width for name, spec in survey.fields.items() if spec.width}
    for group in survey.pose_groups:
        for key, name in zip(
            (group.position_key, group.rotation_key), relative_names(group), strict=True
        ):
            if key in widths:
                widths[name] = widths[key]
    return widths


def _action_width(config: JsonlConfig, survey: Survey, fields: Mapping[str, int]) -> int:
    if not survey.cameras:
        raise _source_error("the episodes have no camera", "no_camera", "use another source")
    width = sum(fields.values())
    if not width:
        problem = "the episodes have no action field"
        hint = "set one with --action-fields or the keys of the format"
        raise _source_error(problem, "no_actions", hint)
    if config.action_width not in (None, width):
        problem = f"an action has {counted(width, 'value')} ({', '.join(fields)}), expected "
        hint = "set other fields with --action-fields, or another --action-width"
        raise _source_error(f"{problem}{config.action_width}", "action_width", hint)
    return width


def _source_error(problem: str, code: str, hint: str) -> DataError:
    return DataError(problem, hint=hint, code=f"data.{code}")
