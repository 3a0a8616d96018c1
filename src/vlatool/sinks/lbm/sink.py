"""The `lbm` sink: `shards/` for training, `episodes/` with the same samples in frame order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlatool.artifacts.fields import DIMENSION_NAMES
from vlatool.artifacts.shards.format import (
    CLOSING_FILES,
    EPISODE_FILES,
    EPISODES_NAME,
    LISTED_FILES,
    OWNED_FILES,
    SHARDS_NAME,
    VOLATILE_FILES,
    ShardFolder,
    write_manifest,
    write_preprocessing_config,
    write_processing_metadata,
)
from vlatool.artifacts.stats.format import STATS_NAME, write_with_digests
from vlatool.errors import DataError
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.sinks.base import Estimate, SinkConfig, SinkSetup, SinkSummary, Work
from vlatool.sinks.lbm.config import LbmConfig
from vlatool.sinks.lbm.episodes import LBM, EpisodeWriter, stored_episode
from vlatool.sinks.lbm.shards import SampleIndex, write_shards
from vlatool.storage.atomic import remove_file
from vlatool.transforms.sampling import EpisodeSampler
from vlatool.transforms.statistics import StatisticsAccumulator, field_entries, from_arrays
from vlatool.transforms.windows import make_windows

# Published options that do not affect the data; they are written with the value null.
_UNUSED_KEYS = (
    "output_dir",
    "num_workers",
    "ray_address",
    "ray_num_cpus",
    "output_dir_fixed_path",
    "auto_tag",
    "skip_git_tagging",
    "db_logging",
    "max_episodes_to_process",
)
_DROP_HINTS = {
    "padding": "allow more padding with --max-padding-left and --max-padding-right",
    "still": "lower --still-threshold or --still-field-thresholds, or leave out "
    "--filter-still-samples",
    "unsuccessful_episode": "leave out --only-successful",
    "success_unknown": "no episode records success or failure; leave out --only-successful",
    "episode_missing_camera": "choose cameras that the episodes have with --camera-names, or leave "
    "out --skip-episodes-missing-cameras",
}


class LbmSink:
    """Writes training data of the LBM pipeline.

    Source: formats/lbm 1; formats/lbm-preprocessing 1, 2.
    """

    Config: ClassVar[type[SinkConfig]] = LbmConfig
    owned: ClassVar[Sequence[str]] = OWNED_FILES
    volatile: ClassVar[Sequence[str]] = VOLATILE_FILES
    findings: ClassVar[FindingCodes] = LBM
    next_step: ClassVar[str] = (
        "vlatool train --preset diffusion-policy-tiny --data {output} --num-epochs 20"
    )

    def __init__(self, config: LbmConfig, setup: SinkSetup) -> None:
        self._config = config
        self._setup = setup
        if not setup.survey.fields:
            raise DataError(
                "the episodes have no field; windows need at least one",
                hint="write images only with --sink image-shards",
                code="data.no_fields",
            )
        spec = config.sample_spec()
        steps = spec.windows.past + 1 + spec.windows.future
        self._example = stored_episode(setup.survey.example(steps), config)
        # Options that do not fit the fields raise here, not once per episode.
        sampler = EpisodeSampler(self._example, (), spec)
        self._widths = sampler.widths()
        self.fields: Mapping[str, int] = {
            name: self._widths.get(name, 0) for name in sampler.fields
        }
        self.temporary: Sequence[str] = () if config.keep_episodes else EPISODE_FILES
        self.work: Work = EpisodeWriter(setup.output, config)
        self.action_fields: tuple[str, ...] = setup.policy_actions(
            self.fields, self._example.action_fields
        )
        self.proprioception_fields: tuple[str, ...] = self._example.proprioception_fields

    def begin(self) -> None:
        """Removes the closing files and writes the options of this run."""
        for name in CLOSING_FILES:
            remove_file(self._setup.output / name)
        write_preprocessing_config(self._setup.output / SHARDS_NAME, self._options())

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Shuffles samples into shards, writes statistics and, last, the manifests."""
        output, config = self._setup.output, self._config
        index, total = SampleIndex(), StatisticsAccumulator()
        for receipt in receipts:
            index.add(receipt)
            if len(receipt.arrays) > 1:
                total.add(from_arrays(receipt.arrays))
        if not index.samples:
            raise _no_samples_error(run.dropped)
        statistics = total.total()
        if statistics is not None:
            self._write_stats(dict(field_entries(statistics, self._widths)))
        entries = write_shards(
            output, index, config.seed, config.samples_per_shard, run.executor, run.reporter
        )
        shards = [shard for shard, _ in entries]
        files = [entry for pair in entries for entry in pair]
        if not self.temporary or run.failures:
            files += index.files
            write_manifest(ShardFolder.of(output, EPISODES_NAME).manifest, _rows(index.files))
        write_manifest(ShardFolder.of(output, SHARDS_NAME).manifest, _rows(shards))
        self._write_metadata(run, index.samples)
        small = (file_entry(output, name) for name in LISTED_FILES if (output / name).is_file())
        size = sum(entry.bytes for entry in shards)
        return SinkSummary(index.samples, size, (*files, *small), {"shards": len(shards)})

    def estimate(self) -> Estimate:
        """Estimate from the mean length of the episodes."""
        survey = self._setup.survey
        if survey.frames is None:
            return Estimate(None)
        frames = round(survey.frames / max(survey.episodes, 1))
        windows = make_windows(frames, self._config.sample_spec().windows)
        samples = len(windows.anchors) * survey.episodes
        return Estimate(samples, {"shards": -(-samples // self._config.samples_per_shard)})

    def _write_stats(self, entries: Mapping[str, Mapping[str, object]]) -> None:
        write_with_digests(self._setup.output / SHARDS_NAME / STATS_NAME, entries)

    def _write_metadata(self, run: JobRun, samples: int) -> None:
        write_processing_metadata(
            self._setup.output / SHARDS_NAME,
            started=run.started,
            counts={
                "total_samples_created": samples,
                "sample_counts": {"dropped": dict(run.dropped)},
                "failures": run.redact_paths(run.failures),
            },
            arguments=run.record.options,
            episodes=[ref.id for ref in self._setup.refs],
        )

    def _options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml: options of the data, and facts that training needs.

        Source: formats/lbm 3.2.
        """
        options = self._config.model_dump(mode="json", exclude={"type", "keep_episodes"})
        groups = self._example.pose_groups
        return {
            **self._setup.origin,
            **dict.fromkeys(_UNUSED_KEYS),
            **options,
            "sink": self._config.type,
            "camera_rotations": options["camera_rotations"] or None,
            "image_resizing_method": options["image_resizing_method"].upper(),
            "image_resizing_filter": self._config.resize_filter,
            "camera_names": list(self._setup.survey.cameras),
            "pose_groups": [
                {key: value for key, value in vars(group).items() if value} for group in groups
            ],
            "action_fields": list(self.action_fields),
            "proprioception_fields": list(self.proprioception_fields),
            "fps": self._setup.survey.fps,
            DIMENSION_NAMES: {
                name: list(info.names)
                for name, info in self._setup.survey.fields.items()
                if info.names
            },
        }


def _rows(files: Iterable[FileEntry]) -> list[tuple[str, int]]:
    return [(Path(entry.path).stem, entry.samples or 0) for entry in files]


def _no_samples_error(dropped: Mapping[str, int]) -> DataError:
    main_reason = max(dropped, key=lambda reason: dropped[reason], default="padding")
    listed = ", ".join(f"{count} for {reason}" for reason, count in dropped.items())
    return DataError(
        f"no sample was written; dropped: {listed or 'none'}",
        hint=_DROP_HINTS.get(
            main_reason, f"relax the rule that drops the most samples: {main_reason}"
        ),
        code="data.no_samples",
        details={"dropped": dict(dropped)},
    )
