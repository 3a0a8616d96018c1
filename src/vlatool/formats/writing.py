"""Protocol of sinks, and the images of episodes in all of them: resize keys, reading, encoding.

A sink writes an episode completely or not at all, and yields a receipt. It receives whole episodes
and alone defines its windows, samples and shards. It is created once per run from the survey of the
episodes and stays in the main process; its `work` is sent to the workers.
"""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from pydantic import AfterValidator, Field

from vlatool import episode
from vlatool.config.base import ConfigModel
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.findings import FindingCodes
from vlatool.formats.media.images import (
    JPEG,
    PNG,
    ImageInfo,
    Subsampling,
    decode_rgb,
    decoded_size,
    encode_jpeg,
    encode_png,
    image_info,
)
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.plugins import did_you_mean
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod, resize

Work = Callable[[episode.EpisodeRef, episode.Episode], Receipt]

SIZES = "sizes"  # fact of receipts: (height, width) of the recorded images by camera


def no_rate(user: str) -> UsageError:
    """Error of a format or sink that needs a rate which is neither stored nor given."""
    return UsageError(
        f"the data do not store one number of frames per second, which the {user} needs",
        hint="give the rate at which they were recorded, such as --fps 20",
        code="usage.missing_key",
    )


class SinkConfig(ConfigModel):
    """Section of a sink; `type` is its name, which `--sink NAME` sets."""

    type: Any


@dataclass(frozen=True)
class SinkSetup:
    """Arguments of a sink."""

    output: Path  # the output folder
    survey: episode.Survey  # survey of the selected episodes; its cameras are the selected ones
    refs: Sequence[episode.EpisodeRef]  # the episodes, in order
    # options of the run outside the sink's section, for the metadata of the output
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    action_fields: tuple[str, ...] = ()  # requested action fields; empty: those of the survey
    hold_out: float | None = None  # share of the episodes to hold out; None: by their number
    hold_out_seed: int = 0  # seed of their choice

    def policy_actions(self, stored: Mapping[str, int], default: Sequence[str]) -> tuple[str, ...]:
        """Action fields of the output: the requested ones, or else the default."""
        return stored_fields(self.action_fields or default, stored, "--action-fields")


def stored_fields(names: Sequence[str], stored: Mapping[str, int], option: str) -> tuple[str, ...]:
    """The names that an option chooses; DataError if one is no numeric field of the output."""
    known = [name for name, width in stored.items() if width]
    for name in names:
        if name not in known:
            raise DataError(
                f"the output has no field {name!r} for {option}",
                hint=did_you_mean(name, known) or f"choose others with {option}",
                code="data.unknown_field",
                details={"field": name, "known": known},
            )
    return tuple(names)


@dataclass(frozen=True)
class SinkSummary:
    """Summary of a complete output."""

    samples: int  # number of training samples
    bytes: int  # size of the files that training reads
    files: tuple[FileEntry, ...]  # every file that was written, those of the receipts included
    # further counts by name, such as `shards`
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Estimate:
    """Estimated size of an output; `samples` is None where the survey does not suffice."""

    samples: int | None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


class Sink(Protocol):
    """Writer of episodes as training data.

    Attributes:
        Config: Its keys; the default of `type` is the name of the sink.
        findings: Codes of the findings in its receipts; None: there are none.
        owned: Patterns of all files that it writes; other files in the folder are not touched.
        volatile: Those of them that hold times.
        temporary: Those of them that are removed once the output is complete.
        has_arrays: True if receipts carry arrays.
        needs_rate: True if the output stores the frames per second.
        holds_out: True if it marks the episodes that are held out for evaluation.
        changes_rate: True if frames are stored at another rate than that of the episodes.
        next_step: Suggested next command, with `{output}` and its last part `{name}` in it; may be
            empty.
        next_without_images: The same for an output without images.
        work: Writes one episode; picklable. Files have their final names when it returns. The item
            of its receipt is the id of the episode; the receipt counts `samples` and `frames`.
        fields: Map from each stored field to its number of dimensions, 0 for text.
        action_fields: Fields that a policy predicts by default, by their stored names.
        proprioception_fields: Fields that a policy observes by default, by their stored names.
        stored_roles: Roles of what it stores; parts of others are named as left out.
    """

    Config: ClassVar[type[SinkConfig]]
    owned: ClassVar[Sequence[str]]
    findings: ClassVar[FindingCodes | None] = None
    volatile: ClassVar[Sequence[str]] = ()
    temporary: Sequence[str] = ()
    has_arrays: ClassVar[bool] = True
    needs_rate: ClassVar[bool] = True
    holds_out: ClassVar[bool] = False
    changes_rate: bool = False
    next_step: ClassVar[str] = ""
    next_without_images: ClassVar[str] = "vlatool verify {output}"
    work: Work
    fields: Mapping[str, int]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    stored_roles: Collection[str] = ("camera", "field", "language")

    def __init__(self, config: Any, setup: SinkSetup) -> None: ...

    def stored(self, episode: episode.Episode) -> episode.Episode:
        """The episode with the fields that are stored, those of actions and states included."""
        return episode

    def begin(self) -> None:
        """Removes the files that mark an output as complete."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Joins the episodes of `receipts`, in their order, into the final artifact.

        Raises:
            DataError: There is nothing to write.
        """
        ...

    def estimate(self) -> Estimate:
        """Estimated size of the output of a run."""
        ...


MakeSink = Callable[[Any, SinkSetup], Sink]


FRAMES_PER_READ = 8
_LARGEST_SIDE = 16_384  # pixels


def _width_and_height(value: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """Size from the published form too: one number, 0 keeps the size."""
    size = (value, value) if isinstance(value, int) else value
    if size in (None, (0, 0)):
        return None
    if not 1 <= min(size) <= max(size) <= _LARGEST_SIDE:
        raise ValueError(f"width and height must be 1 to {_LARGEST_SIDE}")
    return size


# Keys of the size of written images, for configs of sinks.
ImageSize = Annotated[
    tuple[int, int] | int | None,
    AfterValidator(_width_and_height),
    Field(
        description="Width, height of the images, or one number for both; null keeps their size."
    ),
]
ResizingMethod = Annotated[ResizeMethod, Field(description="Resize method.")]
ResizingFilter = Annotated[ResizeFilter, Field(description="Resize filter.")]


def height_and_width(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """(height, width) of written images for a validated `ImageSize`; None keeps their size."""
    return (size[1], size[0]) if isinstance(size, tuple) else None


def read_frames(camera: str, source: episode.FrameSource, frames: Sequence[int]) -> episode.Array:
    """Frames of a camera: uint8 [N, H, W, 3], or other values [N, H, W]."""
    with _unreadable(camera, source, frames[0]):
        return source.read(frames)


def stored_jpeg(
    camera: str, source: episode.FrameSource, frame: int, size: tuple[int, int]
) -> bytes | None:
    """The JPEG file of a frame, if it is one of the size (height, width) that every reader decodes
    alike.
    """
    with _unreadable(camera, source, frame):
        data = source.encoded(frame)
        if data is None:
            return None
        info = image_info(data)
        if not (info.is_plain and info.format == JPEG):
            return None
        decoded_size(data)  # a JPEG has no checksums
    return data if info.size == size else None


@contextmanager
def _unreadable(camera: str, source: episode.FrameSource, frame: int) -> Generator[None]:
    """Reports errors of decoders; an OSError of theirs is not one of the output disk."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise _image_error(camera, source, frame, f"unreadable image: {error}") from error


def _image_error(camera: str, source: episode.FrameSource, frame: int, reason: str) -> DataError:
    """The error for an image that cannot be written; it names the file of the image, if any."""
    path = source.path_of(frame)
    place = f"camera {camera!r}, frame {frame}"
    details: dict[str, Any] = {"camera": camera, "frame": frame}
    if path is not None:
        place = str(path)
        details["path"] = place
    return DataError(
        f"{place}: {reason}",
        hint="copy or record the image again, or exclude the episode with --exclude",
        code="data.broken",
        details=details,
    )


@dataclass(frozen=True)
class ImageEncoding:
    """Form of written images."""

    size: tuple[int, int] | None  # (height, width); None keeps their size
    method: ResizeMethod
    filter: ResizeFilter
    # formats that are copied where nothing changes, and the format of all others
    formats: tuple[str, ...] = (PNG, JPEG)
    quality: int = 100  # JPEG quality
    subsampling: Subsampling = "4:4:4"  # chroma subsampling of JPEG
    verify_pixels: bool = False  # decode PNG files that are copied, too

    def can_copy(self, info: ImageInfo) -> bool:
        """True if stored bytes can be written unchanged."""
        return info.is_plain and info.format in self.formats and self.size in (None, info.size)

    def encode(self, pixels: episode.UInt8Array) -> tuple[str, bytes]:
        """Format and bytes of an image uint8 [H, W, 3]."""
        resized = resize(pixels, self.size, self.method, self.filter)
        if self.formats[0] == JPEG:
            return JPEG, encode_jpeg(resized, self.quality, self.subsampling)
        return PNG, encode_png(resized)


@dataclass
class ImageWriter:
    """Copies or encodes images; counts what it did."""

    encoding: ImageEncoding  # form of the written images
    copied: int = 0  # number of images that were copied as stored bytes
    converted: int = 0  # number of stored images that were not plain 8-bit RGB
    animations: int = 0  # number of images with several frames
    # (height, width) of images before the resize to their number
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])

    def images(
        self, camera: str, source: episode.FrameSource, num_frames: int
    ) -> Iterator[tuple[str, bytes]]:
        """Format and bytes of the first `num_frames` images of a camera."""
        if len(source) < num_frames:
            problem = f"has {counted(len(source), 'image')} for {counted(num_frames, 'frame')}"
            raise _image_error(camera, source, len(source), problem)
        for start in range(0, num_frames, FRAMES_PER_READ):
            frames = range(start, min(start + FRAMES_PER_READ, num_frames))
            with _unreadable(camera, source, start):
                stored = [source.encoded(frame) for frame in frames]
            pending = [frame for frame, data in zip(frames, stored, strict=True) if data is None]
            pixels = iter(read_rgb(camera, source, pending) if pending else ())
            for frame, data in zip(frames, stored, strict=True):
                with _unreadable(camera, source, frame):
                    image = self._encode(next(pixels)) if data is None else self._stored(data)
                yield image

    def _stored(self, data: bytes) -> tuple[str, bytes]:
        info = image_info(data)
        if self.encoding.can_copy(info):
            if info.format == JPEG or self.encoding.verify_pixels:
                decoded_size(data)  # a JPEG has no checksums
            self.copied += 1
            self.sizes[info.size] += 1
            return info.format, data
        self.converted += not info.is_plain and info.frames == 1
        self.animations += info.frames > 1
        return self._encode(decode_rgb(data))

    def _encode(self, pixels: episode.UInt8Array) -> tuple[str, bytes]:
        self.sizes[pixels.shape[0], pixels.shape[1]] += 1
        return self.encoding.encode(pixels)


def read_rgb(camera: str, source: episode.FrameSource, frames: Sequence[int]) -> episode.UInt8Array:
    """Frames of a camera with colors, uint8 [N, H, W, 3]; DataError if they are not."""
    pixels: Any = read_frames(camera, source, frames)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        problem = f"images are {pixels.dtype} {list(pixels.shape[1:])}, not uint8 [H, W, 3]"
        raise _image_error(camera, source, frames[0], problem)
    return pixels
