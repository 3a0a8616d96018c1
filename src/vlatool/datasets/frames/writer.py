"""The `frames` sink: each frame of an episode once, in one tar per episode.

How an episode becomes files:

1. `preprocess` makes one `FramesSink` for a job. It knows fields and cameras from a survey.
2. `work` runs in the workers, once per episode: it resizes and encodes the images, writes
   `frames/EPISODE.tar` with the numbers first, and an index of byte ranges beside it.
3. It returns a `Receipt` with names, sizes and digests, which goes into the journal of the job. A
   killed job repeats only the episodes without one.
4. `finish` takes the receipts in order, chooses the episodes that are held out, and writes
   `frames.json` last: an output without it is not complete.

Windows are cut when training reads the frames, or by `vlatool preprocess frames` for readers of the
published shards; neither encodes an image again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlatool.config.base import option
from vlatool.datasets.frames import layout as frames_layout
from vlatool.datasets.lbm import writer as lbm
from vlatool.datasets.lbm.images import EpisodeEncoder, image_streams
from vlatool.datasets.lbm.layout import RECORDED_SIZES, write_preprocessing_config
from vlatool.datasets.lbm.shuffle import write_index
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import UsageError
from vlatool.events import counted
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.media.tar import TarWriter, member_bytes
from vlatool.recordings import writing
from vlatool.recordings.field_summary import DIMENSION_NAMES
from vlatool.storage.atomic import open_atomic, remove_file
from vlatool.transforms.geometry import ImageGeometry, make_geometry
from vlatool.transforms.hold_out import held_out
from vlatool.transforms.relative import with_pose_groups
from vlatool.transforms.windows import EpisodeSampler, SampleSpec, WindowsConfig

DEFAULT_SHARE = 0.1  # of the episodes that are held out
LEAST_EPISODES = 5  # of fewer episodes none is held out by default
HELD_OUT = "held_out_episodes"
_TASK = "task"


_IMAGE_KEYS = [
    key for key in lbm.StoredImagesConfig.model_fields if key not in ("type", "pose_groups")
]


class FramesConfig(lbm.StoredImagesConfig, WindowsConfig):
    """Options of the sink `frames`; training may change the options of the windows."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type",),
        "Windows": tuple(WindowsConfig.model_fields),
        "Images": (*_IMAGE_KEYS, "copy_jpeg"),
        "Unlike data sets": ("pose_groups",),
    }

    type: Literal["frames"] = option("frames", "Form of the output.")
    jpeg_optimize: bool = option(
        False, "Make code tables for each JPEG: 5 % smaller files, twice the time, the same pixels."
    )
    copy_jpeg: bool = option(
        False, "Copy recorded JPEG images unchanged if size and rotation stay the same."
    )

    def sampler(self, episode: Episode) -> EpisodeSampler:
        """Windows of an episode, without images, that training cuts unless it has other keys."""
        method = self.image_resizing_method
        still = self.stillness()
        return EpisodeSampler(
            episode, (), SampleSpec(self.window_spec(), (0,), None, method, still=still)
        )


def _counts(held_out: int) -> dict[str, int]:
    return {HELD_OUT: held_out} if held_out else {}


@dataclass(frozen=True)
class FramesEpisodeWriter:
    """Writes the frames of an episode into its tar; picklable."""

    output: Path
    config: FramesConfig

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes the tar and its index; the receipt has the sizes of the recorded images."""
        config = self.config
        stored = self.stored(episode)
        if not config.depth:
            stored = replace(stored, depth={})
        if not config.labels:
            stored = replace(stored, labels={})

        size = writing.height_and_width(config.resize_images_size)

        def geometry(camera: str, recorded: tuple[int, int]) -> ImageGeometry:
            turns = config.camera_rotations.get(camera, 0) % 4
            method = config.image_resizing_method
            return make_geometry(recorded, size, method, turns, config.resize_filter)

        streams = image_streams(
            stored,
            geometry,
            has_depth=config.depth,
            has_labels=config.labels,
            copies_jpeg=config.copy_jpeg,
        )
        name = frames_layout.tar_name(ref.id)
        count = stored.num_frames
        ranges: list[tuple[int, int]] = []
        with (
            open_atomic(self.output / name) as file,
            EpisodeEncoder([*streams], range(count), config.encode_image) as encoder,
        ):
            tar = TarWriter(file)
            parts = frames_layout.numbers_members(stored)
            ranges.append(tar.append(b"".join(member_bytes(*part) for part in parts)))
            for frame in range(count if stored.cameras else 0):
                content = b""
                for suffix, data in encoder.images({0: frame}).items():
                    content += member_bytes(f"{ref.id}_{frame:06d}.{suffix}", data)
                ranges.append(tar.append(content))
            tar.finish()
        index = write_index(self.output, name, ranges, tar.position)
        sizes = {camera: list(source.size) for camera, source in stored.cameras.items()}
        sampler = config.sampler(stored)
        return Receipt(
            ref.id,
            counts={"frames": count, "samples": len(sampler)},
            dropped=sampler.dropped,
            files=(FileEntry(name, tar.position, tar.sha256, count), index),
            findings=tuple(lbm.missing_findings(episode, config)),
            facts={writing.SIZES: sizes, _TASK: episode.task},
        )

    def stored(self, episode: Episode) -> Episode:
        """The episode with the fields of the pose groups."""
        groups = self.config.pose_groups
        return episode if groups is None else with_pose_groups(episode, groups)


class FramesSink(writing.Sink):
    """Writes frames; see `datasets.frames.layout`."""

    Config: ClassVar[type[writing.SinkConfig]] = FramesConfig
    owned: ClassVar[Sequence[str]] = frames_layout.OWNED_FILES
    findings: ClassVar[FindingCodes | None] = lbm.LBM
    has_arrays: ClassVar[bool] = False
    holds_out: ClassVar[bool] = True
    lower_case_cameras: ClassVar[bool] = True
    may_lack_windows: ClassVar[bool] = False
    needs_actions: ClassVar[bool] = True
    next_step: ClassVar[str] = lbm.LbmSink.next_step
    next_without_images: ClassVar[str] = lbm.LbmSink.next_without_images

    def __init__(self, config: FramesConfig, setup: writing.SinkSetup) -> None:
        lbm.check_names(setup.survey.fields)
        writing.check_sizes(setup.survey, config.resize_images_size)
        self._config = config
        self._setup = setup
        self.stored_roles: Collection[str] = lbm.stored_roles(config)
        self._writer = FramesEpisodeWriter(setup.output, config)
        self.work: writing.Work = self._writer
        self._example = self.stored(setup.survey.example(config.window_spec().length))
        sampler = config.sampler(self._example)  # relative poses are fields of the windows
        widths = sampler.widths()
        self.fields: Mapping[str, int] = {name: widths.get(name, 0) for name in sampler.fields}
        self.action_fields: tuple[str, ...] = setup.policy_actions(
            self.fields, self._example.action_fields
        )
        self.proprioception_fields: tuple[str, ...] = self._example.proprioception_fields
        self._num_held_out = len(self._held_out({ref.id: ref.task for ref in setup.refs}))

    def stored(self, episode: Episode) -> Episode:
        return self._writer.stored(episode)

    def begin(self) -> None:
        remove_file(self._setup.output / frames_layout.NAME)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> writing.SinkSummary:
        """Chooses the episodes that are held out, and writes options and, last, the manifest."""
        output = self._setup.output
        episodes: list[frames_layout.FramesEpisode] = []
        tasks: dict[str, str] = {}
        files: list[FileEntry] = []
        samples = 0
        sizes = dict[str, set[tuple[int, ...]]]()
        for receipt in receipts:
            samples += receipt.counts.get("samples", 0)
            files += receipt.files
            if receipt.files:
                tar = receipt.files[0]
                count = receipt.counts["frames"]
                episodes.append(frames_layout.FramesEpisode(receipt.item, tar.sha256, count))
                tasks[receipt.item] = receipt.facts.get(_TASK, "")
            for camera, size in receipt.facts.get(writing.SIZES, {}).items():
                sizes.setdefault(camera, set()).add(tuple(size))
        if not samples and not self.may_lack_windows:
            raise lbm.no_samples(run.dropped)

        options = self._options()
        options[RECORDED_SIZES] = {
            camera: [list(size) for size in sorted(sizes_of_camera)]
            for camera, sizes_of_camera in sizes.items()
        }
        write_preprocessing_config(output, options)
        held_out_ids = self._held_out(tasks)
        rows: list[dict[str, Any]] = []
        for episode in episodes:
            if episode.id in held_out_ids:
                episode = replace(episode, split=frames_layout.VAL)
            rows.append(episode.row())
        frames_layout.MANIFEST.write(output, {"episodes": rows})
        size = sum(file.bytes for file in files)
        for name in (frames_layout.CONFIG_NAME, frames_layout.NAME):
            files.append(file_entry(output, name))
        counts = _counts(len(held_out_ids))
        return writing.SinkSummary(samples, size, tuple(files), counts)

    def _held_out(self, tasks: Mapping[str, str]) -> Collection[str]:
        """Ids of the episodes that are held out, of all that were written.

        Raises:
            UsageError: No episode is left to train on.
        """
        share = self._setup.hold_out
        if share is None:
            splits = {ref.id: ref.split for ref in self._setup.refs if ref.id in tasks}
            if {*splits.values()} >= {frames_layout.TRAIN, frames_layout.VAL}:
                return {name for name, split in splits.items() if split == frames_layout.VAL}
            share = DEFAULT_SHARE if len(tasks) >= LEAST_EPISODES else 0.0
        held_out_ids = held_out(tasks, share, self._setup.hold_out_seed)
        if held_out_ids and len(held_out_ids) == len(tasks):
            raise UsageError(
                f"--hold-out {share:g} of {counted(len(tasks), 'episode')} leaves none to train on",
                hint="hold out a smaller share, or none with --hold-out 0",
                code="usage.bad_value",
            )
        return held_out_ids

    def estimate(self) -> writing.Estimate:
        samples = lbm.estimated_windows(self._setup.survey, self._config)
        return writing.Estimate(samples, _counts(self._num_held_out))

    def _options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml."""
        config = self._config
        survey = self._setup.survey
        options = {
            **self._setup.origin,
            **config.recorded({"type", "pose_groups"}),
            "sink": config.type,
            "image_resizing_filter": config.resize_filter,
            "camera_names": list(survey.cameras),
            "action_fields": list(self.action_fields),
            "proprioception_fields": list(self.proprioception_fields),
            "pose_groups": [asdict(group) for group in self._example.pose_groups],
            "fps": survey.fps,
        }
        if config.pose_groups:
            groups = [group.model_dump() for group in config.pose_groups]
            options["conversions"] = {"pose_groups": groups, "fps": None}
        dimension_names: dict[str, list[str]] = {}
        for name, field in survey.fields.items():
            if field.names:
                dimension_names[name] = list(field.names)
        options[DIMENSION_NAMES] = dimension_names
        return options
