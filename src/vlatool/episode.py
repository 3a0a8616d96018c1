"""Episodes: what readers return, sinks write and policies see.

An `EpisodeRef` says where an episode is, a `Survey` what some episodes store, an `Episode` is one
of them. A `Sample` is a window of an episode, an `Observation` the input of a policy at one step.

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
NO_ACTIONS = "none"  # the only item of `action_fields` of data without actions


def listed_cameras(names: Sequence[str]) -> list[str]:
    """Returns the cameras in a value of `camera_names`; none if it is `["none"]`."""
    return [] if list(names) == [NO_CAMERAS] else list(names)


@dataclass(frozen=True)
class RowSegment:
    """Rows of one episode in a table file, which may hold other episodes, too.

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
    """Frames of one episode in a video file, which may hold other episodes, too.

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

    The cameras of an episode may be read at the same time, each by one thread.

    Attributes:
        is_prepared: True if the images are already resized for training, as the sink `frames`
            writes them. `encoded` and `read` then return the resized image, and `size` is still
            the size of the recording.
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
        """Returns images uint8 [N, H, W, 3] in RGB; depth and labels are integers [N, H, W].

        Reading is fastest if `indices` ascend from call to call.

        Raises:
            DataError: A frame cannot be decoded. The message names file and frame.
        """
        ...

    def encoded(self, index: int) -> bytes | None:
        """Returns the stored PNG or JPEG file of a frame, so that it can be copied.

        None if the frame is not stored as such a file, for example in a video.

        Raises:
            DataError: The file is missing. The message names file and frame.
        """
        return None

    @property
    def clip(self) -> Clip | None:
        """The part of a video that holds the images; None if they are not in a video."""
        return None

    def path_of(self, index: int) -> Path | None:
        """Returns the file that holds only this frame; None if there is none."""
        return None


@dataclass(frozen=True)
class PoseGroup:
    """A pose: a position field [F, 3] and a rotation field [F, 6] that belong together.

    Attributes:
        name: Name of the pose.
        position_key: Name of the position field.
        rotation_key: Name of the rotation field (6D: the first two rows of the matrix).
        reference_position: Position field of the measured pose to which relative poses refer. If
            empty, `transforms.relative.actual_field` names it, else the pose refers to itself.
        reference_rotation: Rotation field of the measured pose.
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

    field: str  # name of the action field
    first: int  # first dimension
    last: int  # last dimension, inclusive
    origin: str  # where it is declared, such as `meta/modality.json: right_arm`
    relation: str = ""  # `absolute` or `delta`; empty: not declared
    rotations: tuple[str, ...] = ()  # possible representations of a rotation; empty: not declared
    frame: str = ""  # frame of reference of a delta, `base` or `tool`; empty: not declared


@dataclass(frozen=True)
class LanguageSpan:
    """A text that applies to some frames of an episode, such as a subtask."""

    kind: str  # kind of annotation: a `LanguageKind`, or a name from the data
    text: str
    first: int  # first frame
    last: int  # last frame, inclusive


# What a stored thing is used as; `time`: timestamps or numbers of the frames.
Role = Literal["camera", "depth", "labels", "field", "language", "success", "time", "left_out"]
Content = Literal["images", "numbers", "actions", "text", "unusable", "other"]


@dataclass(frozen=True)
class StoredPart:
    """One thing that an episode stores, and what it is used as; see `recordings.inventory`.

    Attributes:
        path: Its path in the episode, written as usual in the format.
        role: What it is used as; each part has exactly one role.
        name: Name of the camera or field, or kind of annotation; may be empty.
        content: What it holds; `unusable` means that all numbers are NaN.
        note: Why it is left out and how to use it; or what its role was guessed from.
    """

    path: str
    role: Role
    name: str = ""
    content: Content = "numbers"
    note: str = ""

    @property
    def is_loss(self) -> bool:
        """True if it is left out although a policy may need it: a camera, an action or a text."""
        return self.role == "left_out" and self.content not in ("numbers", "other")


@dataclass(frozen=True)
class EpisodeRef:
    """Says where an episode is; small and picklable, because it is sent to worker processes.

    Attributes:
        id: Name of letters, digits, `_` and `-`, unique in a run. It becomes part of file names and
            sample keys.
        path: Path that the reader opens.
        source: Source that contains the episode, as the user wrote it.
        number: Number of the episode in its data set, for `--episodes`; None if it has none.
        task: Name of the task in the data.
        files: Files of the episode besides `path`. A repeated command reads the episode again if
            one of them has changed.
        language: Map from kind of annotation to sentences, if known before the episode is opened.
        extras: Anything else that the reader needs to open it.
        excluded: Reason to leave the episode out, such as `validation_episode`; empty to use it.
        split: `train` or `val` (held out) if the source says which, else empty.
        listing: If all episodes of a folder share its files, a number that is new for each
            `discover`: the files below `path` are then listed once; 0: for each episode.
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
    listing: int = 0


@dataclass(frozen=True)
class FieldSpec:
    """Width and dimension names of a field.

    Attributes:
        width: Number of dimensions C; 0 for text.
        names: Names of the dimensions; empty if unknown.
    """

    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What the selected episodes of a source store, found without decoding images.

    Attributes:
        episodes: Number of surveyed episodes.
        cameras: Map from camera to (height, width) of its images, or to None if unknown; has the
            cameras of all episodes, in order.
        mixed_sizes: Cameras whose episodes have images of several sizes.
        fields: Map from field to its specification, in the order of `Episode.lowdim`. It has the
            fields that most episodes have, with the most common width; an episode that differs
            fails.
        frames: Number of frames of all episodes together; None if unknown.
        fps: Frames per second; None if episodes differ or state none.
        action_fields: As in `Episode`.
        proprioception_fields: As in `Episode`.
        pose_groups: As in `Episode`.
        text_kinds: Kinds of annotation besides `original` that frames may have.
        declared: As in `Episode`.
        parts: What the episodes store, each path once. If roles differ, the first episode decides.
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
    mixed_sizes: frozenset[str] = frozenset()

    def example(self, frames: int = 1) -> "Episode":
        """Makes up an episode with these fields and no images; its values are arbitrary."""
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
    """A recording of a robot: its fields are in memory, its images are decoded on request.

    Attributes:
        id: As in its `EpisodeRef`.
        task: Name of the task.
        fps: Frames per second; 0 if neither the data nor the options of the reader state it.
        num_frames: Number of frames F.
        cameras: Map from camera name to its images.
        missing_cameras: Map from camera name to the error, for cameras that the data set declares
            for every episode and that have no images in this one.
        lowdim: Map from field name to array [F, C]; text fields are unicode [F].
        dimension_names: Map from field name to the names of its C dimensions, if the data have
            them.
        language: Map from kind of annotation (`original`, `randomized`, ...) to sentences that
            apply to the whole episode.
        language_spans: Texts that apply to some frames only.
        calibration: Map from camera name to calibration; cameras without calibration have no entry.
        depth: Map from camera name to depth images, uint16 [H, W] in millimeters.
        labels: Map from camera name to segmentation labels, integers [H, W].
        success: True if the task was completed; None if unknown.
        action_fields: Fields that a policy predicts by default, in order.
        proprioception_fields: Fields that a policy observes by default, in order.
        pose_groups: Poses for which relative fields can be computed.
        frame_metadata: Map from name to one value per frame, which is stored with each sample.
        declared: Meaning of the actions, if the data state it.
        parts: Everything that the episode stores, with the role of each part.
        cut_frames: Number of frames at the end that were left out, because a part ended earlier.
        findings: Defects that do not prevent reading; none is an error.
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
        """Returns the spans that have a text and include a frame."""
        return self._spans[frame] if self.language_spans else []

    @cached_property
    def _spans(self) -> list[list[LanguageSpan]]:
        frames: list[list[LanguageSpan]] = [[] for _ in range(self.num_frames)]
        for span in filter(lambda span: span.text.strip(), self.language_spans):
            for members in frames[max(span.first, 0) : max(span.last + 1, 0)]:
                members.append(span)
        return frames

    def texts(self, frame: int | None = None) -> dict[str, list[str]]:
        """Returns the sentences at a frame, or of all frames (None), by kind of annotation."""
        texts = {kind: list(sentences) for kind, sentences in self.language.items()}
        spans = self.language_spans if frame is None else self.spans_at(frame)
        for span in spans:
            texts.setdefault(span.kind, []).append(span.text)
        return texts

    def instruction_at(self, frame: int) -> str:
        """Returns the instruction at a frame: a sentence of kind `original` if there is one, else
        of another kind; empty if there is none.
        """
        kinds = self.texts(frame)
        for texts in (kinds.get("original", []), *kinds.values()):
            for text in texts:
                if text.strip():
                    return text
        return ""


@dataclass(frozen=True)
class Sample:
    """A training example: the window around an anchor frame.

    Attributes:
        key: Name without dots, the same in every run; prefix of the tar members.
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
        offsets: Steps of the images relative to the current one, ascending, at most 0; `(-1, 0)`
            is the previous and the current image.
        size: (height, width) of the images in pixels; a policy resizes others. None: any size, the
            same for all images of an observation.
        recorded: (height, width) of the recordings that it was trained on; empty if unknown.
        quarter_turns: Number of quarter turns that a policy makes of the images of a robot.
    """

    offsets: tuple[int, ...] = (0,)
    size: tuple[int, int] | None = None
    recorded: tuple[tuple[int, int], ...] = ()
    quarter_turns: int = 0


@dataclass(frozen=True)
class ObservationSpec:
    """Describes the input that a policy takes.

    Attributes:
        cameras: Map from camera name to its images.
        fields: Map from measured field to its number of dimensions C.
        past: Number of steps before the current one whose fields and commands the policy takes.
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
        committed: Map from action field to the commands [L, C] that are left of the previous chunk,
            from the current step on; None: the robot waits for the new chunk.
        delay: Number of these commands that the robot executes before the new chunk takes effect.
        image_masks: Map from camera to bool [K], False for padded images; a camera without an entry
            has no padded image.
        is_preprocessed: True for the observation of a training sample. Its images are rotated
            already, and past and returned actions are fields of the training data, with relative
            poses where the data have relative poses.
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
    """Turns an image [3, H, W] into [H, W, 3].

    It counts as [3, H, W] if `is_first` says so, or if its last axis is not 3.
    """
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
    """Turns a value of an observation into an array; raises a DataError if that is impossible."""
    kind = type(values).__name__
    try:
        if issubclass(type(values), list | tuple) and _has_text(values):
            # As an array each would take the bytes of the longest.
            raise TypeError("it holds texts")
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, on a GPU, with a gradient
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{name!r} is a {kind} and cannot be turned into an array: {reason}",
            hint="send a NumPy array; turn a tensor into one with tensor.detach().cpu().numpy()",
            code="data.missing",
            details={"name": name},
        ) from None
