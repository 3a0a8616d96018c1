"""What a sink (a format that `preprocess` writes) must provide, and how sinks write images.

A sink receives whole episodes and decides itself how they become windows, samples and shards. One
sink is made per run, from the survey of the episodes, and stays in the main process. Only its
`work` is sent to the worker processes: it writes one episode, completely or not at all, and returns
a receipt. At the end, `finish` joins the episodes of all receipts into the output.
"""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from vlatool import episode
from vlatool.config.base import ConfigModel
from vlatool.config.coerce import value_text
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import OTHER_OUTPUT, check_no_differences
from vlatool.jobs.record import read_record
from vlatool.media.images import (
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
from vlatool.plugins import did_you_mean
from vlatool.report.text import few_text
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod, resize

Work = Callable[[episode.EpisodeRef, episode.Episode], Receipt]

SIZES = "sizes"  # fact of receipts: (height, width) of the recorded images by camera


def no_rate(
    user: str, format_name: str = "FORMAT", layout: str = "", usual: float | None = None
) -> UsageError:
    """Returns the error for data whose frame rate is neither stored nor given.

    `user` names what needs the rate: `format`, or `sink NAME`. `usual`: rate that recordings of
    this layout usually have.
    """
    hint = f"name format and rate, such as: vlatool preprocess {format_name} SOURCE --fps 20"
    if usual:
        hint = f"{layout or 'such recordings'} usually has {usual:g} frames per second; if yours "
        hint += f"does, add --fps {usual:g}"
    return UsageError(
        f"the {user} needs a frame rate, and your recordings do not state a single one",
        hint=hint,
        code="usage.missing_key",
    )


class SinkConfig(ConfigModel):
    """Options of a sink; `type` is the name of the sink, which `--sink NAME` sets."""

    type: Any


# Options of encoders, and what version 0.3 did; its records may lack them.
_ENCODERS = {"jpeg_optimize": True, "video_crf": 18, "video_preset": "medium"}
AnySink = TypeVar("AnySink", bound=SinkConfig)


def with_encoders_of(folder: Path, config: AnySink) -> AnySink:
    """Options with the encoders with which an output was begun.

    Raises:
        UsageError: Version 0.3 began it, and the options name another encoder.
    """
    before = read_record(folder)
    if before is None:
        return config
    begun: dict[str, Any] = {}
    for key, former in _ENCODERS.items():
        if key not in type(config).model_fields:
            continue
        if key not in config.model_fields_set:
            begun[key] = before.options.get(key, former)
        elif key not in before.options and getattr(config, key) != former:
            difference = f"{key} {value_text(former)} (now {value_text(getattr(config, key))})"
            check_no_differences(folder, "with other options", [difference], OTHER_OUTPUT)
    return config.model_copy(update=begun)


def encoder_options(config: SinkConfig) -> dict[str, Any]:
    """The options of encoders that are not as in version 0.3, for a record."""
    options: dict[str, Any] = {}
    for key, former in _ENCODERS.items():
        value = getattr(config, key, former)
        if value != former:
            options[key] = value
    return options


@dataclass(frozen=True)
class SinkSetup:
    """What a sink is made from: the output folder, the episodes and options of the run."""

    output: Path  # the output folder
    survey: episode.Survey  # survey of the selected episodes; its cameras are the selected ones
    refs: Sequence[episode.EpisodeRef]  # the episodes, in order
    # options of the run besides the sink's own, for the metadata of the output
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # fields of --action-fields; empty: use the action fields of the survey
    action_fields: tuple[str, ...] = ()
    # share of the episodes to hold out for evaluation; None: the number of episodes decides
    hold_out: float | None = None
    hold_out_seed: int = 0  # seed of the choice of these episodes

    def policy_actions(self, stored: Mapping[str, int], default: Sequence[str]) -> tuple[str, ...]:
        """Returns the action fields of the output: `--action-fields` if given, else `default`.

        Raises:
            DataError: The output stores no numeric field of this name.
        """
        return stored_fields(self.action_fields or default, stored, "--action-fields")


def stored_fields(names: Sequence[str], stored: Mapping[str, int], option: str) -> tuple[str, ...]:
    """Returns the field names that an option lists, after checking that the output stores them.

    Raises:
        DataError: A name is not a numeric field of the output.
    """
    known = [name for name, width in stored.items() if width]
    for name in names:
        if name not in known:
            raise DataError(
                f"the output has no field {name!r} for {option}",
                hint=did_you_mean(name, known) or "the output has no numeric field at all",
                code="data.unknown_field",
                details={"field": name, "known": known},
            )
    return tuple(names)


@dataclass(frozen=True)
class SinkSummary:
    """Summary of a complete output."""

    samples: int  # number of training samples
    bytes: int  # size of the files that training reads
    files: tuple[FileEntry, ...]  # every file of the output, including the files of the receipts
    # further counts by name, such as `shards`
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Estimate:
    """Estimated size of an output; `samples` is None if the survey does not say enough."""

    samples: int | None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


class Sink(Protocol):
    """Writes episodes as training data.

    Attributes:
        Config: Class of the options of the sink; the default of `type` is the name of the sink.
        findings: Codes of the findings in its receipts; None if it has none.
        owned: Patterns of all files that it writes. Other files in the folder are not touched.
        volatile: Patterns of written files that contain times, so two runs differ in them.
        temporary: Patterns of written files that are removed once the output is complete.
        has_arrays: True if its receipts carry arrays.
        needs_rate: True if the output stores the frame rate.
        needs_actions: True if the output is for training policies, which need actions.
        holds_out: True if it marks episodes as held out for evaluation.
        changes_rate: True if it may store frames at another rate than the recorded one.
        next_step: Command that `preprocess` suggests afterwards. `{output}` stands for the output
            and `{name}` for its last part; empty suggests nothing.
        next_without_images: Suggested command if the output has no images.
        work: Writes one episode and returns its receipt; picklable. When it returns, the files
            have their final names. The item of the receipt is the id of the episode, and the
            receipt counts `samples` and `frames`.
        fields: Map from the name of each stored field to its number of dimensions; 0 is text.
        action_fields: Stored names of the fields that a policy predicts by default.
        proprioception_fields: Stored names of the fields that a policy observes by default.
        lower_case_cameras: True if loaders read the names of its cameras in lower case.
        stored_roles: Roles of the parts that it stores. `preprocess` names all other parts as
            left out.
    """

    Config: ClassVar[type[SinkConfig]]
    owned: ClassVar[Sequence[str]]
    findings: ClassVar[FindingCodes | None] = None
    volatile: ClassVar[Sequence[str]] = ()
    temporary: Sequence[str] = ()
    has_arrays: ClassVar[bool] = True
    needs_rate: ClassVar[bool] = True
    needs_actions: ClassVar[bool] = False
    holds_out: ClassVar[bool] = False
    changes_rate: bool = False
    lower_case_cameras: ClassVar[bool] = False
    next_step: ClassVar[str] = ""
    next_without_images: ClassVar[str] = "vlatool verify {output}"
    work: Work
    fields: Mapping[str, int]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    stored_roles: Collection[str] = ("camera", "field", "language")

    def __init__(self, config: Any, setup: SinkSetup) -> None: ...

    def stored(self, episode: episode.Episode) -> episode.Episode:
        """Returns the episode as the sink stores it: its fields, actions and states."""
        return episode

    def begin(self) -> None:
        """Removes the files that mark an output as complete, before the first episode."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Joins the episodes of `receipts`, in their order, into the final output.

        Raises:
            DataError: There is nothing to write.
        """
        ...

    def estimate(self) -> Estimate:
        """Estimates the size of the output, for `--dry-run`."""
        ...


MakeSink = Callable[[Any, SinkSetup], Sink]


FRAMES_PER_READ = 8
_LARGEST_SIDE = 16_384  # pixels


def _width_and_height(value: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """Accepts the published forms of a size, too: a single number, and 0 to keep the size."""
    size = (value, value) if isinstance(value, int) else value
    if size in (None, (0, 0)):
        return None
    if not 1 <= min(size) <= max(size) <= _LARGEST_SIDE:
        raise ValueError(f"width and height must be from 1 to {_LARGEST_SIDE} pixels")
    return size


# Keys of the size of written images, for configs of sinks.
ImageSize = Annotated[
    tuple[int, int] | int | None,
    AfterValidator(_width_and_height),
    Field(
        description="Width,height of written images in pixels, or one number; null keeps the size."
    ),
]
ResizingMethod = Annotated[
    ResizeMethod, Field(description="How images of another shape are made to fit the size.")
]
ResizingFilter = Annotated[
    ResizeFilter, Field(description="Filter that computes the pixels of a resized image.")
]


def height_and_width(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """Returns (height, width) for a validated `ImageSize`; None if images keep their size."""
    return (size[1], size[0]) if isinstance(size, tuple) else None


def check_sizes(survey: episode.Survey, size: tuple[int, int] | int | None) -> None:
    """Checks that the images of each camera have one size, as loaders need it.

    `size`: the size to which the images are resized; None keeps theirs.

    Raises:
        DataError: The episodes have images of several sizes.
    """
    mixed = sorted(survey.mixed_sizes.intersection(survey.cameras))
    if mixed and size is None:
        raise DataError(
            f"the images of {few_text(mixed)} have several sizes; training needs one per camera",
            hint="make them equal with --resize-images-size WIDTH,HEIGHT, or leave cameras out: "
            "--camera-names lists the cameras to use",
            code="data.mismatch",
            details={"camera": mixed[0]},
        )


def read_frames(camera: str, source: episode.FrameSource, frames: Sequence[int]) -> episode.Array:
    """Reads frames of a camera: uint8 [N, H, W, 3], or depth or labels [N, H, W]."""
    with _unreadable(camera, source, frames[0]):
        return source.read(frames)


def stored_jpeg(
    camera: str, source: episode.FrameSource, frame: int, size: tuple[int, int]
) -> bytes | None:
    """Returns the stored JPEG file of a frame, if it can be copied; else None.

    It can be copied if it has the size (height, width) and every decoder gives the same pixels.
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
    """Turns errors of decoders into a DataError: an OSError here is no error of the output disk."""
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
        hint="copy the file from the original again, or leave the episode out with --exclude",
        code="data.broken",
        details=details,
    )


@dataclass(frozen=True)
class ImageEncoding:
    """How images are written: size, file format and quality."""

    size: tuple[int, int] | None  # (height, width); None keeps their size
    method: ResizeMethod
    filter: ResizeFilter
    # formats of files that are copied if nothing changes; the first one is used to encode
    formats: tuple[str, ...] = (PNG, JPEG)
    quality: int = 100  # JPEG quality
    subsampling: Subsampling = "4:4:4"  # chroma subsampling of JPEG
    optimize: bool = True  # code tables for each JPEG
    verify_pixels: bool = False  # decode PNG files that are copied, too

    def can_copy(self, info: ImageInfo) -> bool:
        """True if the stored file can be written unchanged."""
        return info.is_plain and info.format in self.formats and self.size in (None, info.size)

    def encode(self, pixels: episode.UInt8Array) -> tuple[str, bytes]:
        """Encodes an image uint8 [H, W, 3]; returns its format and bytes."""
        resized = resize(pixels, self.size, self.method, self.filter)
        if self.formats[0] == JPEG:
            data = encode_jpeg(resized, self.quality, self.subsampling, optimize=self.optimize)
            return JPEG, data
        return PNG, encode_png(resized)


@dataclass
class ImageWriter:
    """Copies or encodes the images of a camera, and counts how many of each."""

    encoding: ImageEncoding  # form of the written images
    copied: int = 0  # number of images that were copied as stored bytes
    converted: int = 0  # number of stored images that were not plain 8-bit RGB
    animations: int = 0  # number of images with several frames
    # (height, width) of images before the resize to their number
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])

    def images(
        self, camera: str, source: episode.FrameSource, num_frames: int
    ) -> Iterator[tuple[str, bytes]]:
        """Yields (format, bytes) of the first `num_frames` images of a camera."""
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
    """Reads frames of a color camera, uint8 [N, H, W, 3].

    Raises:
        DataError: The images have another type or shape.
    """
    pixels: Any = read_frames(camera, source, frames)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        problem = f"images are {pixels.dtype} {list(pixels.shape[1:])}, not uint8 [H, W, 3]"
        raise _image_error(camera, source, frames[0], problem)
    return pixels
