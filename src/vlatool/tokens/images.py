"""Images to encode, of all cameras of an episode, by name.

An episode is opened twice: by the process that counts its images, and by the process that decodes
them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, UInt8Array
from vlatool.errors import DataError
from vlatool.media.images import NotRgbError, decode_plain
from vlatool.plugins import FORMATS


class NamedImage(NamedTuple):
    """Image and its name in its episode."""

    stem: str  # file name without suffix
    pixels: UInt8Array  # uint8 [H, W, 3]


@dataclass(frozen=True)
class EpisodeOpener:
    """Opens the images of episodes of one format; picklable."""

    format: str  # name of the dataset format
    config: ConfigModel  # keys of the format

    def __call__(self, ref: EpisodeRef) -> "EpisodeImages":
        """Opens the images of an episode without decoding any; DataError if it has none."""
        return EpisodeImages(ref, FORMATS.get(self.format)(self.config).read(ref))


class EpisodeImages:
    """Images of an episode, camera by camera.

    An image has the name of its file, if the episode has one camera and its files have names; else
    the name consists of camera, episode and frame.
    """

    def __init__(self, ref: EpisodeRef, episode: Episode) -> None:
        self._ref = ref
        self._cameras = episode.cameras
        self._files = episode.frame_metadata.get("file", ()) if len(self._cameras) == 1 else ()
        self._frames: list[tuple[str, int]] = []
        for camera, frames in self._cameras.items():
            for frame in range(len(frames)):
                self._frames.append((camera, frame))
        if not self._frames:
            raise DataError.at(
                ref.path,
                "the episode has no images to encode",
                hint="leave the episode out with --exclude",
                code="data.missing",
            )

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, indices: Sequence[int]) -> Iterator[NamedImage]:
        """Yields the decoded images at `indices`."""
        by_camera: dict[str, list[int]] = {}
        for index in indices:
            camera, frame = self._frames[index]
            by_camera.setdefault(camera, []).append(frame)
        for camera, frames in by_camera.items():
            yield from self._of_camera(camera, frames)

    def _of_camera(self, camera: str, frames: Sequence[int]) -> Iterator[NamedImage]:
        source = self._cameras[camera]
        if source.encoded(frames[0]) is None:
            images = source.read(frames)
            for frame, pixels in zip(frames, images, strict=True):
                yield NamedImage(self._stem(camera, frame), pixels)
            return
        for frame in frames:
            data = source.encoded(frame)
            assert data is not None, "all frames of a camera are stored the same way"
            stem = self._stem(camera, frame)
            yield NamedImage(stem, _decoded(data, f"{self._ref.path}: {stem}"))

    def _stem(self, camera: str, frame: int) -> str:
        if self._files:
            return Path(self._files[frame]).stem
        return f"{camera}_{self._ref.id}_frame_{frame:06d}"


def _decoded(data: bytes, name: str) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of a stored image; the same images are refused in training."""
    try:
        return decode_plain(data)
    except NotRgbError as error:
        hint = "convert the image to RGB first"
        code = "data.mismatch"
        hint += ": the tokenizer was trained on RGB only"
        problem = str(error)
    except ValueError as error:
        hint = "copy the image again, or leave its episode out with --exclude"
        code = "data.broken"
        problem = f"the image cannot be read: {error}"
    raise DataError(f"{name}: {problem}", hint=hint, code=code, details={"picture": name})


def check_unique_names(location: Path, stems: Sequence[str]) -> None:
    """Raises DataError if two images of an episode share a name, which identifies their codes."""
    duplicates = [stem for stem, count in Counter(stems).items() if count > 1]
    if duplicates:
        raise DataError.at(
            location,
            f"several images have the name {duplicates[0]}",
            hint="give each image of an episode its own name",
            code="data.broken",
            pictures=duplicates[:20],
        )
