"""The work on one episode, the same in every engine: read, cut, encode, write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.plugins import FORMATS, did_you_mean
from vlatool.sinks.base import Receipt
from vlatool.sinks.encoding import EpisodeEncoder
from vlatool.sinks.shards import ShardSink
from vlatool.sources.base import FormatReader
from vlatool.transforms.sampling import EpisodeSampler, SampleSpec, schema_of


@dataclass(frozen=True)
class EpisodeTask:
    """Everything a worker needs; picklable.

    Attributes:
        format: Name of the dataset format.
        reader_config: Keys of its reader.
        spec: How an episode becomes samples.
        sink: Where they go.
        cameras: Cameras to store, in order.
        schema: Width of each field, which every episode must have.
        action_fields: Fields that a policy predicts by default.
        proprioception_fields: Fields that a policy observes by default.
    """

    format: str
    reader_config: ConfigModel
    spec: SampleSpec
    sink: ShardSink
    cameras: tuple[str, ...]
    schema: dict[str, int]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    skip_missing_cameras: bool
    jpeg_quality: int

    @classmethod
    def for_dataset(
        cls,
        format_name: str,
        reader_config: ConfigModel,
        spec: SampleSpec,
        sink: ShardSink,
        first: Episode,
        *,
        cameras: Sequence[str] | None,
        skip_missing_cameras: bool,
        jpeg_quality: int,
    ) -> Self:
        """A task whose cameras and schema are those of the first readable episode."""
        return cls(
            format=format_name,
            reader_config=reader_config,
            spec=spec,
            sink=sink,
            cameras=tuple(first.cameras if cameras is None else cameras),
            schema=schema_of(first.lowdim),
            action_fields=first.action_fields,
            proprioception_fields=first.proprioception_fields,
            skip_missing_cameras=skip_missing_cameras,
            jpeg_quality=jpeg_quality,
        )

    def __call__(self, ref: EpisodeRef) -> Receipt:
        """Writes the samples of one episode.

        Raises:
            DataError: The episode is broken or does not fit the others.
        """
        reader: FormatReader = FORMATS.get(self.format)(self.reader_config)
        episode = reader.read(ref)
        self._check_schema(episode)
        cameras = kept_cameras(episode, self.cameras)
        missing = [name for name in self.cameras if name not in cameras]
        if missing and (self.skip_missing_cameras or not cameras):
            return _dropped(episode, missing, "episode_missing_camera")
        sampler = EpisodeSampler(episode, cameras, self.spec)
        return self._write(ref, sampler)

    def _write(self, ref: EpisodeRef, sampler: EpisodeSampler) -> Receipt:
        episode = sampler.episode
        samples = list(sampler)
        encoder = EpisodeEncoder(
            {name: episode.cameras[name] for name in sampler.cameras},
            sampler.geometries,
            (frame for sample in samples for frame in sample.image_frames.values()),
            self.jpeg_quality,
        )
        padding = sampler.windows.dropped_padding
        dropped = {"padding": padding} if padding else {}
        if not samples:
            return Receipt(
                episode.id, episode.num_frames, dropped=dropped, warnings=episode.warnings
            )
        with self.sink.open_episode(ref) as writer:
            for sample in samples:
                writer.write(sample, encoder.images(sample.image_frames))
        return Receipt(
            episode=episode.id,
            num_frames=episode.num_frames,
            ranges=writer.ranges,
            statistics=sampler.statistics(),
            dropped=dropped,
            warnings=episode.warnings,
        )

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


def _dropped(episode: Episode, missing: Sequence[str], reason: str) -> Receipt:
    message = f"{episode.id}: dropped, lacks {', '.join(missing)}"
    return Receipt(episode.id, dropped={reason: 1}, warnings=(*episode.warnings, (reason, message)))


def _width(width: int | None) -> str:
    if width is None:
        return "absent"
    return "text" if width == 0 else f"{width} wide"
