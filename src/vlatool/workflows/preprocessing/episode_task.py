"""The work on one episode, the same in every engine: read, cut, encode, write."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.plugins import FORMATS, did_you_mean
from vlatool.sinks.base import Receipt
from vlatool.sinks.lbm.encoding import EpisodeEncoder, PictureStream
from vlatool.sinks.lbm.shards import ShardSink
from vlatool.sources.base import FormatReader
from vlatool.transforms.pose_groups import PoseGroupConfig, with_pose_groups
from vlatool.transforms.sampling import EpisodeSampler, SampleSpec, schema_of
from vlatool.workflows.preprocessing.inputs import input_state


@dataclass(frozen=True)
class EpisodeChoice:
    """What of an episode is used.

    Attributes:
        cameras: Cameras to store, in order; None for all.
        skip_missing_cameras: Drop an episode that lacks one instead of keeping it without.
        only_successful: Drop an episode that failed, or does not say.
        depth: Store depth pictures where there are some.
        labels: Store segmentation labels where there are some.
        pose_groups: Poses instead of the format's own; None for its own.
        jpeg_quality: 1 to 100.
    """

    cameras: tuple[str, ...] | None = None
    skip_missing_cameras: bool = False
    only_successful: bool = False
    depth: bool = False
    labels: bool = False
    pose_groups: tuple[PoseGroupConfig, ...] | None = None
    jpeg_quality: int = 95


@dataclass(frozen=True)
class EpisodeTask:
    """Everything a worker needs; picklable.

    Attributes:
        format: Name of the dataset format.
        reader_config: Keys of its reader.
        spec: How an episode becomes samples.
        choice: What of it is used; its cameras are known.
        sink: Where samples go.
        schema: Width of each field, which every episode must have.
        plan_digest: Changes with whatever shapes the bytes of an episode besides its files.
    """

    format: str
    reader_config: ConfigModel
    spec: SampleSpec
    choice: EpisodeChoice
    sink: ShardSink
    schema: Mapping[str, int]
    plan_digest: str = ""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras to store, in order."""
        return self.choice.cameras or ()

    def __call__(self, ref: EpisodeRef) -> Receipt:
        """Writes the samples of one episode, unless an earlier run did.

        Returns:
            The receipt without its bulk, which is in the journal: answers of workers stay small.

        Raises:
            DataError: The episode is broken or does not fit the others.
        """
        state = input_state(ref)
        key = f"{self.plan_digest} {state.digest}"
        before = self.sink.written(ref.id, key)
        if before is not None:
            return _slim(before)
        reader: FormatReader = FORMATS.get(self.format)(self.reader_config)
        receipt = self._process(ref, prepared(reader.read(ref), self.choice))
        receipt = replace(receipt, key=key, sizes=state.sizes, changed_ns=state.changed_ns)
        self.sink.journal.store(receipt)
        return _slim(receipt)

    def _process(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        self._check_schema(episode)
        reason, warnings = self._refusal(episode)
        if reason:
            return Receipt(episode.id, dropped={reason: 1}, warnings=warnings)
        cameras = kept_cameras(episode, self.cameras)
        sampler = EpisodeSampler(episode, cameras, self.spec)
        if not len(sampler):
            frames = episode.num_frames
            return Receipt(episode.id, frames, dropped=sampler.dropped, warnings=warnings)
        with self.sink.open_episode(ref) as writer:
            frames = sampler.needed_frames()
            streams = list(self._streams(sampler))
            with EpisodeEncoder(streams, frames, self.choice.jpeg_quality) as encoder:
                for sample in sampler:
                    writer.write(sample, encoder.images(sample.image_frames))
        return Receipt(
            episode=episode.id,
            num_frames=episode.num_frames,
            ranges=writer.ranges,
            bytes=writer.tar.position,
            sha256=writer.tar.sha256,
            statistics=sampler.statistics() if self.sink.statistics else None,
            dropped=sampler.dropped,
            warnings=warnings,
        )

    def _refusal(self, episode: Episode) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Why the episode is not used, empty if it is; and what there is to warn of."""
        if self.choice.only_successful and not episode.success:
            reason = "unsuccessful_episode" if episode.success is False else "success_unknown"
            return reason, _told(episode)
        cameras = kept_cameras(episode, self.cameras)
        missing = [name for name in self.cameras if name not in cameras]
        if missing and (self.choice.skip_missing_cameras or not cameras):
            reason = "episode_missing_camera"
            message = f"{episode.id}: dropped, lacks {', '.join(missing)}"
            return reason, (*_told(episode), (reason, message))
        return "", (*_told(episode), *self._lacking(episode, cameras))

    def _lacking(self, episode: Episode, cameras: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Warnings of depth and labels that were asked for and are not there."""
        wanted = {"depth": self.choice.depth, "labels": self.choice.labels}
        there = {"depth": episode.depth, "labels": episode.labels}
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            missing = [name for name in cameras if name not in there[kind]]
            if missing:
                yield f"missing_{kind}", f"{episode.id}: no {kind} of {', '.join(missing)}"

    def _streams(self, sampler: EpisodeSampler) -> Iterator[PictureStream]:
        episode = sampler.episode
        for name in sampler.cameras:
            yield PictureStream(name, episode.cameras[name], sampler.geometries[name])
        extra = {"depth": episode.depth if self.choice.depth else {}}
        extra["label"] = episode.labels if self.choice.labels else {}
        for kind, sources in extra.items():
            for name in sampler.cameras:
                if name in sources:
                    source = sources[name]
                    geometry = self.spec.geometry(name, source.size)
                    yield PictureStream(f"{name}_{kind}", source, geometry, "values")

    def _check_schema(self, episode: Episode) -> None:
        schema = schema_of(episode.lowdim)
        if schema == self.schema:
            return
        for name in [*self.schema, *schema]:
            if schema.get(name) != self.schema.get(name):
                raise DataError(
                    f"{episode.id}: field {name!r} is {_width(schema.get(name))}, "
                    f"in the first episode {_width(self.schema.get(name))}",
                    hint="episodes of one run must have the same fields; discard the field or "
                    "preprocess the episodes apart",
                    code="data.schema_mismatch",
                    details={"field": name},
                )


def _told(episode: Episode) -> tuple[tuple[str, str], ...]:
    found = episode.findings
    return tuple((one.code, one.message) for one in found if one.severity == "warning")


def _slim(receipt: Receipt) -> Receipt:
    return replace(receipt, ranges=(), statistics=None)


def prepared(episode: Episode, choice: EpisodeChoice) -> Episode:
    """The episode with the pose groups that were asked for."""
    if choice.pose_groups is None:
        return episode
    return with_pose_groups(episode, choice.pose_groups)


def first_readable(reader: FormatReader, refs: Sequence[EpisodeRef]) -> Episode:
    """The first episode that can be read; it decides cameras and fields.

    Raises:
        DataError: None can; the first episode's reason.
    """
    reasons: list[DataError] = []
    for ref in refs:
        try:
            return reader.read(ref)
        except DataError as error:
            reasons.append(error)
    first = reasons[0]
    raise DataError(
        f"none of the {len(refs)} episodes can be read; the first: {first.message}",
        hint=first.hint,
        code=first.code,
        details={**first.details, "episodes": len(refs)},
    )


def check_cameras(
    wanted: Sequence[str], reader: FormatReader, refs: Sequence[EpisodeRef], first: Episode
) -> None:
    """Makes sure that some episode has each requested camera.

    Raises:
        DataError: None has; names the nearest.
    """
    known = list(first.cameras)
    for ref in refs:
        if all(name in known for name in wanted):
            return
        try:
            known += [name for name in reader.read(ref).cameras if name not in known]
        except DataError:  # reported when the episode's turn comes
            continue
    for name in wanted:
        if name not in known:
            raise DataError(
                f"camera {name!r} is not in the data; there are: {', '.join(known)}",
                hint=did_you_mean(name, known),
                code="data.unknown_camera",
                details={"camera": name, "known": known},
            )


def kept_cameras(episode: Episode, wanted: Sequence[str]) -> tuple[str, ...]:
    """The wanted cameras that the episode has, in order."""
    return tuple(name for name in wanted if name in episode.cameras)


def _width(width: int | None) -> str:
    if width is None:
        return "absent"
    return "text" if width == 0 else f"{width} wide"
