"""Frames that `preprocess --sink frames` wrote, as episodes for training shards.

Their images are final: a sink copies them, and other sinks than `lbm` are refused.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlatool.config.base import ConfigModel, option
from vlatool.datasets.frames.layout import NAME, FramesFolder, FramesTar, tar_name
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import UsageError
from vlatool.recordings import base
from vlatool.transforms.windows import WindowsConfig

# Keys of sinks that decide the bytes of an image.
_OF_IMAGES = (
    "resize_images_size",
    "image_resizing_method",
    "image_resizing_filter",
    "camera_rotations",
    "jpeg_quality",
    "jpeg_optimize",
    "compat",
)


class FramesKeys(ConfigModel):
    """Options of the format `frames`."""

    split: Literal["train", "val"] | None = option(
        None, "Read only the episodes for training (train) or held out (val); null reads all."
    )


class FramesReader(base.FormatReader):
    """Reads folders that `--sink frames` wrote; see `datasets.frames.layout`."""

    Config: ClassVar[type[ConfigModel]] = FramesKeys
    default_sink: ClassVar[str] = "lbm"

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        used: dict[str, int] = {}
        for source in sources:
            folder = FramesFolder.find(source)
            if folder is None:
                raise base.no_episodes(source, f"a folder with {NAME}")
            for number, episode in enumerate(folder.episodes):
                if self.config.split not in (None, episode.split):
                    continue
                yield EpisodeRef(
                    id=base.unused_id(episode.id, used),
                    path=folder.path / tar_name(episode.id),
                    source=str(source),
                    number=number if len(sources) == 1 else None,
                )

    def sink_config(self, sink: Any, sources: Sequence[Path]) -> Any:
        """The config of the sink with the keys of the stored images and windows."""
        if sink.type != "lbm":
            raise UsageError(
                f"--sink {sink.type} cannot read frames: only --sink lbm copies their images",
                hint=f"use your recordings: vlatool preprocess RECORDINGS --sink {sink.type}",
                code="usage.unsupported",
            )
        for source in sources:
            folder = FramesFolder.find(source)
            options = {} if folder is None else folder.options()
            image_options = {key: options[key] for key in _OF_IMAGES if key in options}
            stored = type(sink).model_validate(image_options)
            changed: dict[str, Any] = {}
            for key in _OF_IMAGES:
                value = getattr(stored, key)
                if key in sink.model_fields_set and getattr(sink, key) != value:
                    wanted = getattr(sink, key)
                    if key == "image_resizing_filter":
                        wanted = sink.resize_filter
                    raise UsageError(
                        f"--{key.replace('_', '-')} is {wanted}, but the images in {source} are "
                        f"already stored with {value}",
                        hint="leave the option out, or preprocess your recordings again",
                        code="usage.unsupported",
                    )
                changed[key] = value
            for key in WindowsConfig.model_fields:
                if key in options and key not in sink.model_fields_set:
                    changed[key] = options[key]
            sink = sink.model_copy(update=changed)
        return sink

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        return base.survey_by_reading(self.read, refs)

    def read(self, ref: EpisodeRef) -> Episode:
        return FramesTar(ref.path).episode(ref.id)
