"""The two values that flow through the product: an episode that was read, a sample cut from it.

Legend of shapes: F frames, N frames asked for, T steps of a window, C channels of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlatool.errors import DataError
from vlatool.findings import Finding

UInt8Array = NDArray[np.uint8]
Array = NDArray[Any]


class FrameSource(Protocol):
    """Pictures of one camera, decoded when asked for.

    Cameras of an episode may be read by several threads at once, each camera by one. A source of
    pictures that are files of their own may also have `encoded(index) -> bytes | None`, as below.
    """

    def __len__(self) -> int:
        """How many frames there are."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the stored pictures, in pixels."""
        ...

    def read(self, indices: Sequence[int]) -> Array:
        """Pictures uint8 [N, H, W, 3], RGB; cheapest when `indices` ascend from call to call.

        Depth and labels are whole numbers [N, H, W].

        Raises:
            DataError: A frame cannot be decoded; names file and frame.
        """
        ...


def stored_bytes(source: FrameSource, index: int) -> bytes | None:
    """A frame as it is stored, a PNG or JPEG of its own; None where it is not, as in a video.

    Raises:
        DataError: It is missing; names file and frame.
    """
    encoded = getattr(source, "encoded", None)
    return None if encoded is None else encoded(index)


@dataclass(frozen=True)
class PoseGroup:
    """A position field [F, 3] and a rotation field [F, 6] that form one pose.

    Attributes:
        reference_position: Position field of the measured pose it is relative to; empty for the
            `actual` counterpart by name, or itself where the name has none.
        reference_rotation: Rotation field of that pose.
    """

    name: str
    position_key: str
    rotation_key: str
    reference_position: str = ""
    reference_rotation: str = ""

    def digest_form(self) -> tuple[str, dict[str, str]]:
        """Name and fields that plan digests hold; outputs on disk depend on them."""
        return "PoseGroup", {
            "name": self.name,
            "position_key": self.position_key,
            "rotation_key": self.rotation_key,
            "reference_position": self.reference_position,
            "reference_rotation": self.reference_rotation,
        }


@dataclass(frozen=True)
class Calibration:
    """Pinhole intrinsics [3, 3] or [F, 3, 3] in pixels; extrinsics base_T_camera [(F,) 4, 4]."""

    intrinsics: Array | None = None
    extrinsics: Array | None = None


@dataclass(frozen=True)
class EpisodeRef:
    """Where an episode is; cheap, picklable, unique by `id` within a run.

    Attributes:
        id: Name made of letters, digits, `_` and `-`; names files and seeds keys.
        path: What the reader opens.
        source: The source it was found under, as the user gave it.
        number: Its number in the data set when the format has one, for `--episodes`.
        task: What the robot was told to do, as the format names it.
        files: What it is read from besides `path`; their sizes tell whether inputs changed.
        language: Kind of annotation to sentences, where known before it is opened.
        extras: Whatever else the reader needs to open it.
        held_out: Why it is not to be used, such as `validation_episode`; empty to use it.
    """

    id: str
    path: Path
    source: str
    number: int | None = None
    task: str = ""
    files: tuple[Path, ...] = ()
    language: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])
    excluded: str = ""


@dataclass(frozen=True)
class FieldSpec:
    """A field as the data declare it.

    Attributes:
        width: Channels; 0 for text.
        names: One per channel where they are known, else empty.
    """

    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What the chosen episodes of a source have between them, found without a pixel.

    Attributes:
        episodes: How many were looked at.
        cameras: Camera that any episode has to (height, width) of its pictures, in order; None
            where that is unknown.
        fields: Field that most episodes have to its most common facts, in the order of
            `Episode.lowdim`. One odd episode is then the one that does not fit.
        frames: Frames of all episodes together; None where that is unknown.
        fps: Frames per second; None where episodes differ or do not say.
        action_fields: As in `Episode`.
        proprioception_fields: As in `Episode`.
        pose_groups: As in `Episode`.
    """

    episodes: int
    cameras: Mapping[str, tuple[int, int] | None]
    fields: Mapping[str, FieldSpec]
    frames: int | None = None
    fps: float | None = None
    action_fields: tuple[str, ...] = ()
    proprioception_fields: tuple[str, ...] = ()
    pose_groups: tuple[PoseGroup, ...] = ()

    def example(self, frames: int = 1) -> "Episode":
        """An episode with these fields and no pictures; its numbers mean nothing."""
        return Episode(
            id="example",
            task="",
            fps=self.fps or 1.0,
            num_frames=frames,
            cameras={},
            lowdim={
                # Rotations of any form need numbers that are neither zero nor alike.
                name: np.tile(np.linspace(1, 2, info.width), (frames, 1))
                if info.width
                else np.full(frames, "x")
                for name, info in self.fields.items()
            },
            action_fields=self.action_fields,
            proprioception_fields=self.proprioception_fields,
            pose_groups=self.pose_groups,
        )


@dataclass(frozen=True)
class Episode:
    """One recording, its numbers in memory and its pictures still on disk.

    Attributes:
        id: As in its `EpisodeRef`.
        task: Name of the task.
        fps: Frames per second.
        num_frames: F.
        cameras: Camera name to its pictures.
        missing_cameras: Camera that its data set declares for every episode, but of which this one
            has no pictures, to what is wrong. A camera that is not declared is merely absent.
        lowdim: Field name to array [F, C]; text fields are unicode [F].
        dimension_names: Field name to the names of its C channels, where the recording has them.
        language: Kind of annotation (`original`, `randomized`, ...) to sentences.
        calibration: Camera name to calibration; cameras without one are absent.
        depth: Camera name to depth pictures, uint16 [H, W] in millimetres.
        labels: Camera name to segmentation labels, whole numbers [H, W].
        success: Whether the task was done; None where the recording does not say.
        action_fields: Fields that a policy predicts by default, in order.
        proprioception_fields: Fields that a policy observes by default, in order.
        pose_groups: Poses for which relative fields make sense.
        frame_metadata: Name to one value per frame, stored with the sample of that anchor.
        findings: EpisodeLint that were tolerated; none is an error.
        extras: Facts about the recording that samples carry in their metadata.
    """

    id: str
    task: str
    fps: float
    num_frames: int
    cameras: Mapping[str, FrameSource]
    lowdim: Mapping[str, Array]
    dimension_names: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    language: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    calibration: Mapping[str, Calibration] = field(default_factory=dict[str, Calibration])
    missing_cameras: Mapping[str, DataError] = field(default_factory=dict[str, DataError])
    depth: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    labels: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    success: bool | None = None
    action_fields: tuple[str, ...] = ()
    proprioception_fields: tuple[str, ...] = ()
    pose_groups: tuple[PoseGroup, ...] = ()
    frame_metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    findings: tuple[Finding, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Sample:
    """One window around an anchor frame.

    Attributes:
        key: Deterministic, without dots; names the tar members.
        anchor: The current frame.
        image_frames: Frame of each image offset, clipped to the episode.
        lowdim: Field name to array [T, C] (text [T]), calibration [T, ...] and masks bool [T].
        language: As in the episode.
        metadata: JSON-serialisable facts.
    """

    key: str
    anchor: int
    image_frames: Mapping[int, int]
    lowdim: Mapping[str, Array]
    language: Mapping[str, Sequence[str]]
    metadata: Mapping[str, Any]
