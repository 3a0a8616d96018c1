"""Episodes, their references and surveys, samples (windows of episodes), and what a policy sees.

Shapes: F frames of an episode, N requested frames, T steps of a window, C dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlatool.errors import DataError
from vlatool.findings import Finding

UInt8Array = NDArray[np.uint8]
Array = NDArray[Any]

# Kinds of annotation; the last four are styles of LeRobot.
LanguageKind = Literal[
    "original", "randomized", "verbose", "alternative", "subtask", "plan", "motion", "task_aug"
]
NO_CAMERAS = "none"  # the only item of `camera_names` of data or policies without images


def listed_cameras(names: Sequence[str]) -> list[str]:
    """The cameras that a key `camera_names` lists."""
    return [] if list(names) == [NO_CAMERAS] else list(names)


@dataclass(frozen=True)
class RowSegment:
    """Rows of one episode in a table file, which may also have those of others.

    Attributes:
        path: The file.
        first: Number of the first row in the file, from 0.
        count: Number of rows; None: all rows of the file from `first` on.
    """

    path: Path
    first: int = 0
    count: int | None = None


@dataclass(frozen=True)
class Clip:
    """Frames of one episode in a video file, which may also have those of others.

    Attributes:
        path: The file.
        start: Time of the first frame, in seconds after the first frame of the file.
        stop: End in seconds, exclusive; None: the end of the file.
    """

    path: Path
    start: float = 0.0
    stop: float | None = None


class FrameSource(Protocol):
    """Images of one camera, decoded on request.

    Several threads may read the cameras of an episode at the same time, one thread per camera.

    Attributes:
        is_prepared: True if `encoded` is the final image of training data and `size` is that of the
            recording; `read` gives pixels of the final image.
    """

    is_prepared: bool = False

    def __len__(self) -> int:
        """Number of frames."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the stored images, in pixels."""
        ...

    def read(self, indices: Sequence[int]) -> Array:
        """Images uint8 [N, H, W, 3], RGB; fastest if `indices` ascend from call to call.

        Depth and labels are integers [N, H, W].

        Raises:
            DataError: A frame cannot be decoded; the message has file and frame.
        """
        ...

    def encoded(self, index: int) -> bytes | None:
        """Stored PNG or JPEG file of a frame; None if it is no separate file, as in a video.

        Raises:
            DataError: The file is missing; the message has file and frame.
        """
        return None

    @property
    def clip(self) -> Clip | None:
        """The part of a video that has the images; None if they are in no video."""
        return None

    def path_of(self, index: int) -> Path | None:
        """File that has only this frame; None if there is none."""
        return None


@dataclass(frozen=True)
class PoseGroup:
    """Pose that consists of a position field [F, 3] and a rotation field [F, 6].

    Attributes:
        reference_position: Position field of the measured pose that relative poses refer to; empty
            for the field that `transforms.relative.actual_field` names, or the pose itself.
        reference_rotation: Rotation field of that pose.
    """

    name: str
    position_key: str
    rotation_key: str
    reference_position: str = ""
    reference_rotation: str = ""


@dataclass(frozen=True)
class Calibration:
    """Pinhole intrinsics [3, 3] or [F, 3, 3] in pixels; extrinsics base_T_camera [(F,) 4, 4]."""

    intrinsics: Array | None = None
    extrinsics: Array | None = None


@dataclass(frozen=True)
class Declaration:
    """Meaning of some dimensions of an action field, as the data or a user declare it."""

    field: str
    first: int  # first dimension
    last: int  # last dimension, inclusive
    origin: str  # of the declaration, such as `meta/modality.json: right_arm`
    relation: str = ""  # `absolute` or `delta`; empty: not declared
    rotations: tuple[str, ...] = ()  # forms of a rotation that it may mean; empty: not declared
    frame: str = ""  # `base` or `tool`, of a delta; empty: not declared


@dataclass(frozen=True)
class LanguageSpan:
    """Text that holds for some frames of an episode."""

    kind: str  # kind of annotation, a `LanguageKind` or one of the data
    text: str
    first: int  # first frame
    last: int  # last frame, inclusive


# What a stored thing is used as; `time`: its values order or date the frames.
Role = Literal["camera", "depth", "labels", "field", "language", "success", "time", "left_out"]
Content = Literal["images", "numbers", "actions", "text", "unusable", "other"]


@dataclass(frozen=True)
class StoredPart:
    """One thing that an episode stores, and its only role; see `formats.inventory`.

    Attributes:
        path: Its path in the episode, as the format writes it.
        role: What it is used as.
        name: Name of the camera or the field, or kind of annotation; empty: it has none.
        content: What it holds; `unusable`: numbers that are NaN throughout.
        note: Why it is left out and what would take it, or what its role was guessed from.
    """

    path: str
    role: Role
    name: str = ""
    content: Content = "numbers"
    note: str = ""

    @property
    def is_loss(self) -> bool:
        """True if a policy could want it, and it is left out: a camera, an action or a text."""
        return self.role == "left_out" and self.content not in ("numbers", "other")


@dataclass(frozen=True)
class EpisodeRef:
    """Reference to an episode: small, picklable, its `id` unique within a run.

    Attributes:
        id: Name of letters, digits, `_` and `-`; part of file names and sample keys.
        path: Path that the reader opens.
        source: Source that contains it, as the user wrote it.
        number: Number in the data set if the format has one, for `--episodes`.
        task: Name of the task in the data.
        files: Further files of the episode besides `path`; their sizes show if inputs changed.
        language: Map from kind of annotation to sentences, if known before the episode is opened.
        extras: Other values that the reader needs to open it.
        excluded: Reason to exclude the episode, such as `validation_episode`; empty to use it.
        split: `train` or `val` (held out), if the source says which; else empty.
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
    split: str = ""


@dataclass(frozen=True)
class FieldSpec:
    """Width and names of a field, as the data declare them.

    Attributes:
        width: Number of dimensions C; 0 for text.
        names: Names of the dimensions; empty if unknown.
    """

    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """Summary of the selected episodes of a source, made without decoding images.

    Attributes:
        episodes: Number of surveyed episodes.
        cameras: Map from cameras of any episode, in order, to (height, width) of their images;
            None if unknown.
        fields: Map from fields that most episodes have to their most common specification, in the
            order of `Episode.lowdim`. If one episode differs, it is the one that does not fit.
        frames: Number of frames of all episodes; None if unknown.
        fps: Frames per second; None if episodes differ or do not have it.
        action_fields: As in `Episode`.
        proprioception_fields: As in `Episode`.
        pose_groups: As in `Episode`.
        text_kinds: Kinds of annotation besides `original` that frames may have.
        declared: As in `Episode`.
        parts: Stored things of any episode, by path; of two roles the first one's.
    """

    episodes: int
    cameras: Mapping[str, tuple[int, int] | None]
    fields: Mapping[str, FieldSpec]
    frames: int | None = None
    fps: float | None = None
    action_fields: tuple[str, ...] = ()
    proprioception_fields: tuple[str, ...] = ()
    pose_groups: tuple[PoseGroup, ...] = ()
    text_kinds: tuple[str, ...] = ()
    declared: tuple[Declaration, ...] = ()
    parts: tuple[StoredPart, ...] = field(default=(), compare=False)

    def example(self, frames: int = 1) -> "Episode":
        """Made-up episode with these fields and no images; its values are arbitrary."""
        lowdim: dict[str, Array] = {}
        for name, info in self.fields.items():
            if info.width:
                # Rotations of any representation need values that are neither zero nor equal.
                lowdim[name] = np.tile(np.linspace(1, 2, info.width), (frames, 1))
            else:
                lowdim[name] = np.full(frames, "x")
        return Episode(
            id="example",
            task="",
            fps=self.fps or 1.0,
            num_frames=frames,
            cameras={},
            lowdim=lowdim,
            action_fields=self.action_fields,
            proprioception_fields=self.proprioception_fields,
            pose_groups=self.pose_groups,
        )


@dataclass(frozen=True)
class Episode:
    """Recording of a robot: low-dimensional fields in memory, images decoded on request.

    Attributes:
        id: As in its `EpisodeRef`.
        task: Name of the task.
        fps: Frames per second; 0 if neither the data nor the options of the reader have it.
        num_frames: Number of frames F.
        cameras: Map from camera name to its images.
        missing_cameras: Camera that the data set declares for every episode and that has no images
            in this one, to the error. A camera that is not declared has no entry anywhere.
        lowdim: Map from field name to array [F, C]; text fields are unicode [F].
        dimension_names: Map from field name to the names of its C dimensions, if the data have
            them.
        language: Kind of annotation (`original`, `randomized`, ...) to sentences that hold for the
            whole episode.
        language_spans: Texts that hold for some of its frames.
        calibration: Map from camera name to calibration; cameras without calibration have no entry.
        depth: Map from camera name to depth images, uint16 [H, W] in millimeters.
        labels: Map from camera name to segmentation labels, integers [H, W].
        success: True if the task was completed; None if unknown.
        action_fields: Fields that a policy predicts by default, in order.
        proprioception_fields: Fields that a policy observes by default, in order.
        pose_groups: Poses for which relative fields can be computed.
        frame_metadata: Map from name to one value per frame, stored with the sample of that anchor.
        declared: Meaning of the actions as the data declare it.
        parts: All that it stores, with the role of each.
        cut_frames: Number of recorded frames behind the last one that has all parts.
        findings: Defects that were tolerated; none is an error.
        extras: Values that are copied to the metadata of each sample.
    """

    id: str
    task: str
    fps: float
    num_frames: int
    cameras: Mapping[str, FrameSource]
    lowdim: Mapping[str, Array]
    dimension_names: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    language: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    language_spans: tuple[LanguageSpan, ...] = ()
    calibration: Mapping[str, Calibration] = field(default_factory=dict[str, Calibration])
    missing_cameras: Mapping[str, DataError] = field(default_factory=dict[str, DataError])
    depth: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    labels: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    success: bool | None = None
    action_fields: tuple[str, ...] = ()
    proprioception_fields: tuple[str, ...] = ()
    pose_groups: tuple[PoseGroup, ...] = ()
    frame_metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    declared: tuple[Declaration, ...] = ()
    parts: tuple[StoredPart, ...] = ()
    cut_frames: int = 0
    findings: tuple[Finding, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def spans_at(self, frame: int) -> list[LanguageSpan]:
        """Spans with a text that hold at a frame."""
        return self._spans[frame] if self.language_spans else []

    @cached_property
    def _spans(self) -> list[list[LanguageSpan]]:
        frames: list[list[LanguageSpan]] = [[] for _ in range(self.num_frames)]
        for span in filter(lambda span: span.text.strip(), self.language_spans):
            for members in frames[max(span.first, 0) : max(span.last + 1, 0)]:
                members.append(span)
        return frames

    def texts(self, frame: int | None = None) -> dict[str, list[str]]:
        """Map from kind of annotation to the sentences at a frame; None: of all frames."""
        texts = {kind: list(sentences) for kind, sentences in self.language.items()}
        spans = self.language_spans if frame is None else self.spans_at(frame)
        for span in spans:
            texts.setdefault(span.kind, []).append(span.text)
        return texts

    def instruction_at(self, frame: int) -> str:
        """First sentence at a frame, of the kind `original` if it has one; empty without any."""
        kinds = self.texts(frame)
        for texts in (kinds.get("original", []), *kinds.values()):
            for text in texts:
                if text.strip():
                    return text
        return ""


@dataclass(frozen=True)
class Sample:
    """Training example made of the window around an anchor frame.

    Attributes:
        key: Deterministic name without dots; prefix of the tar members.
        anchor: Index of the anchor frame.
        image_frames: Map from image offset to frame index, clipped to the episode.
        lowdim: Map from field name to array [T, C] (text [T]), calibration [T, ...] and masks
            bool [T].
        language: As in `Episode`, at the anchor frame.
        metadata: JSON-serializable values.
    """

    key: str
    anchor: int
    image_frames: Mapping[int, int]
    lowdim: Mapping[str, Array]
    language: Mapping[str, Sequence[str]]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class CameraView:
    """Images of one camera that a policy sees.

    Attributes:
        offsets: Steps of the images from the current one, ascending, at most 0: `(-1, 0)`.
        size: (height, width) of the images in pixels; a policy resizes others. None: any size, the
            same for all images of an observation.
        recorded: Sizes of the recordings that it was trained on; empty: unknown.
        quarter_turns: By which a policy turns images of a robot, which have the size before it.
    """

    offsets: tuple[int, ...] = (0,)
    size: tuple[int, int] | None = None
    recorded: tuple[tuple[int, int], ...] = ()
    quarter_turns: int = 0


@dataclass(frozen=True)
class ObservationSpec:
    """Input that a policy takes.

    Attributes:
        cameras: Map from camera name to its images.
        fields: Map from measured field to its number of dimensions C.
        past: Steps before the current one whose measured fields and commands the policy takes.
        instruction: True if the policy reads the instruction.
    """

    cameras: Mapping[str, CameraView] = field(default_factory=dict[str, CameraView])
    fields: Mapping[str, int] = field(default_factory=dict[str, int])
    past: int = 0
    instruction: bool = True


@dataclass(frozen=True)
class Observation:
    """Input of a policy at one step, as its `ObservationSpec` describes it.

    P = past + 1 is the number of steps of a field, K the number of images of a camera.

    Attributes:
        images: Map from camera to uint8 [K, H, W, 3], RGB, in the order of the offsets.
        fields: Map from field to the last values [P, C], the newest last.
        instruction: Instruction for the robot.
        past_actions: Map from action field to the last commands [P - 1, C]; None: unknown.
        past_mask: bool [P - 1], False for padded commands; None: no command is padded.
        committed: Map from action field to the commands [L, C] that are left of the chunk before,
            from the current step on; None: the robot waits for the new chunk.
        delay: Number of these commands that the robot executes before the new chunk takes effect.
        image_masks: Map from camera to bool [K], False for padded images; a camera without an entry
            has no padded image.
        is_preprocessed: True for the observation of a training sample: its images are rotated
            already, and past and returned actions are the fields of the training data, with poses
            relative where those are.
    """

    images: Mapping[str, UInt8Array] = field(default_factory=dict[str, UInt8Array])
    fields: Mapping[str, Array] = field(default_factory=dict[str, Array])
    instruction: str = ""
    past_actions: Mapping[str, Array] | None = None
    past_mask: Array | None = None
    committed: Mapping[str, Array] | None = None
    delay: int = 0
    image_masks: Mapping[str, Array] = field(default_factory=dict[str, Array])
    is_preprocessed: bool = False


def channels_last(image: Array, *, is_first: bool = False) -> Array:
    """Image [H, W, 3] of one that is [3, H, W]: if so declared, or if its last axis is not 3."""
    shape = image.shape
    if len(shape) == 3 and shape[0] == 3 and (is_first or shape[-1] != 3):
        return image.transpose(1, 2, 0)
    return image


def _has_text(value: Any) -> bool:
    """True for a text, and for lists that hold one."""
    items: Any = value
    if isinstance(value, list | tuple):
        return any(_has_text(item) for item in items)
    return isinstance(value, str | bytes)


def as_array(name: str, values: Any) -> Array:
    """A value of an observation as an array; raises a DataError if it cannot become one."""
    kind = type(values).__name__
    try:
        if issubclass(type(values), list | tuple) and _has_text(values):
            # As an array each would take the bytes of the longest.
            raise TypeError("it holds texts")
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, on a GPU, with a gradient
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{name!r} is a {kind} that cannot become an array: {reason}",
            hint="give a numpy array, or a tensor as tensor.detach().cpu().numpy()",
            code="data.missing",
            details={"name": name},
        ) from None
