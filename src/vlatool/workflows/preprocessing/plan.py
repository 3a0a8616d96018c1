"""From a configuration to what will be done: episodes, how they are read, where they go."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError, UsageError
from vlatool.plugins import FORMATS
from vlatool.sinks.lbm.shards import ShardSink
from vlatool.sources.base import FormatReader
from vlatool.sources.order import checked_ids, select
from vlatool.storage.uri import location
from vlatool.transforms.sampling import EpisodeSampler, SampleSpec, schema_of
from vlatool.transforms.stillness import StillnessSpec
from vlatool.transforms.windows import WindowSpec
from vlatool.workflows.preprocessing.config import PreprocessConfig
from vlatool.workflows.preprocessing.episode_task import (
    EpisodeChoice,
    EpisodeTask,
    check_cameras,
    first_readable,
    kept_cameras,
    prepared,
)
from vlatool.workflows.preprocessing.inputs import plan_digest


@dataclass(frozen=True)
class PreprocessPlan:
    """What a run will do.

    Attributes:
        task: The work on one episode.
        refs: Episodes to work on, in order.
        held_out: Reason to number of episodes that are left out on purpose.
        first: The first readable episode; it decides cameras and fields.
        widths: Channels of every numeric field of a sample, relative ones included.
        warnings: (code, message) pairs about the source as a whole.
    """

    task: EpisodeTask
    refs: tuple[EpisodeRef, ...]
    held_out: Mapping[str, int]
    first: Episode
    widths: Mapping[str, int]
    warnings: tuple[tuple[str, str], ...]


def make_plan(config: PreprocessConfig) -> PreprocessPlan:
    """Looks at the sources and decides what will be done.

    Raises:
        UsageError: A needed key is missing.
        DataError: There is no usable episode, or a camera that nobody has is asked for.
    """
    reader = _reader(config)
    found = _discover(config, reader)
    refs = tuple(ref for ref in found if not ref.held_out)
    held_out: dict[str, int] = {}
    for ref in found:
        if ref.held_out:
            held_out[ref.held_out] = held_out.get(ref.held_out, 0) + 1
    if not refs:
        raise DataError(
            f"all {len(found)} episodes are held out: {', '.join(held_out)}",
            hint="leave some of them in",
            code="data.no_episodes",
            details={"held_out": held_out},
        )
    choice = _choice(config)
    first = prepared(first_readable(reader, refs), choice)
    check_cameras([*(config.camera_names or ()), *config.camera_rotations], reader, refs, first)
    cameras = tuple(first.cameras if config.camera_names is None else config.camera_names)
    task = _task(config, reader, first, replace(choice, cameras=cameras))
    sampler = EpisodeSampler(first, kept_cameras(first, cameras), replace(task.spec, finite=False))
    warnings = (
        *((one.code, one.message) for one in getattr(reader, "noticed", ())),
        *_camera_warnings(cameras),
        *_ignored(config),
    )
    return PreprocessPlan(task, refs, held_out, first, sampler.widths(), warnings)


def _task(
    config: PreprocessConfig, reader: FormatReader, first: Episode, choice: EpisodeChoice
) -> EpisodeTask:
    """The work on one episode, with the digest of everything that shapes it."""
    resolved = getattr(reader, "config", None)
    read = resolved if isinstance(resolved, ConfigModel) else reader_section(config)
    spec, schema = _spec(config), schema_of(first.lowdim)
    digest = plan_digest(config.format, read, spec, choice, schema, config.compute_statistics)
    return EpisodeTask(config.format, read, spec, choice, _sink(config), schema, digest)


def reader_section(config: PreprocessConfig) -> ConfigModel:
    """The reader's keys; the defaults where the config was built without them."""
    kind = FORMATS.get(config.format).Config
    return config.source if isinstance(config.source, kind) else kind()


def _reader(config: PreprocessConfig) -> FormatReader:
    for key in ("format", "sources", "output"):
        if not getattr(config, key):
            raise UsageError(
                f"preprocess needs a value for {key!r}",
                hint="vlatool preprocess FORMAT SOURCE... --output DIR",
                code="usage.missing_key",
            )
    return FORMATS.get(config.format)(reader_section(config))


def _discover(config: PreprocessConfig, reader: FormatReader) -> list[EpisodeRef]:
    sources = [location(source) for source in config.sources]
    for source in sources:
        if not source.exists():
            raise DataError(
                f"{source}: does not exist",
                hint="check the path of the source",
                code="data.no_source",
                details={"source": str(source)},
            )
    refs = select(checked_ids(list(reader.discover(sources))), config.episodes)
    if not refs:
        raise DataError(
            f"{', '.join(config.sources)}: no episode found",
            hint=f"is this {config.format} data? `vlatool inspect` says what it is",
            code="data.no_episodes",
        )
    limit = config.max_episodes
    return list(refs if limit is None or limit <= 0 else refs[:limit])


def _sink(config: PreprocessConfig) -> ShardSink:
    return ShardSink(
        output=location(config.output),
        samples_per_shard=config.samples_per_shard,
        seed=config.seed,
        statistics=config.compute_statistics,
    )


def _choice(config: PreprocessConfig) -> EpisodeChoice:
    groups = config.pose_groups
    return EpisodeChoice(
        skip_missing_cameras=config.skip_episodes_missing_cameras,
        only_successful=config.only_successful,
        depth=config.depth,
        labels=config.labels,
        pose_groups=None if groups is None else tuple(groups),
        jpeg_quality=config.jpeg_quality,
    )


def _spec(config: PreprocessConfig) -> SampleSpec:
    size = config.resize_images_size
    still = StillnessSpec(config.still_threshold, config.still_field_thresholds)
    return SampleSpec(
        windows=WindowSpec(
            past=config.past_lowdim_steps,
            future=config.future_lowdim_steps,
            stride=config.stride,
            max_padding_left=config.max_padding_left,
            max_padding_right=config.max_padding_right,
            padding=config.padding_strategy,
        ),
        image_offsets=tuple(config.image_indices),
        image_size=None if size is None else (size[1], size[0]),
        resize_method=config.image_resizing_method,
        resize_filter=config.image_resizing_filter,
        rotations=config.camera_rotations,
        still=still if config.filter_still_samples else None,
        finite=config.fail_on_nan,
        compat=config.compat,
    )


def _camera_warnings(cameras: tuple[str, ...]) -> list[tuple[str, str]]:
    return [
        ("upper_case_camera", f"camera {name!r}: other loaders want lower case")
        for name in cameras
        if name != name.lower()
    ]


def _ignored(config: PreprocessConfig) -> list[tuple[str, str]]:
    """Published options that do nothing here say so."""
    reasons = dict(config.without_effect)
    if config.engine != "ray":
        reasons |= dict.fromkeys(("ray_address", "ray_num_cpus"), "the engine is not ray")
    given: dict[str, Any] = {key: getattr(config, key) for key in reasons}
    return [
        ("option_without_effect", f"{key} does nothing: {reasons[key]}")
        for key, value in given.items()
        if value is not None
    ]
