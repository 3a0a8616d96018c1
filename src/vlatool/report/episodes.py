"""Shows an episode on a page: strips of images, videos, texts and charts over time.

Legend of shapes: S positions in time (frames of an episode).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlatool.episode import Array, LanguageSpan, UInt8Array
from vlatool.events import counted
from vlatool.media.images import visible_image
from vlatool.report.charts import FieldValues, field_charts
from vlatool.report.facts import (
    Axis,
    Figure,
    Figures,
    Fold,
    Part,
    Quotes,
    Section,
    Spans,
    Tags,
    Text,
    Tile,
    Timeline,
    Titled,
    Video,
    Videos,
)
from vlatool.report.page import FEW
from vlatool.report.poses import CameraModel, EndEffectorTrack, draw_poses, pose_legend
from vlatool.storage.byte_ranges import read_file
from vlatool.transforms.neighbors import spread

_STRIP_FRAMES = 8
_BRIEF_FRAMES = 4
_SMALL = 160  # largest side of an image of a brief strip and of a tile, in pixels
_LARGE = 240
# Length of a trail before and after an image, in columns of the strip.
_TRAIL_COLUMNS = 1.5


@dataclass(frozen=True)
class FrameView:
    """Image of a camera at one position in time."""

    image: Image.Image | None  # recorded image, RGB; None if it cannot be shown
    camera: CameraModel | None = None  # camera model; None without calibration
    problem: str = ""  # reason for a missing image

    def figure(
        self, caption: str, description: str = "", overlay: str = "", largest: int = _LARGE
    ) -> Figure:
        return Figure(self.image, caption, description, overlay, self.problem, largest)


def frame_view(
    frame: UInt8Array, intrinsics: Array | None, extrinsics: Array | None, row: int
) -> FrameView:
    """Decoded image uint8 [H, W, 3] with the camera model at a row of the matrices."""
    image = Image.fromarray(frame)
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, row, image.size))


def file_view(path: Path) -> FrameView:
    """Image in a file."""
    try:
        return FrameView(visible_image(read_file(path)))
    except FileNotFoundError:
        return FrameView(None, problem="is missing")
    except (OSError, ValueError):
        return FrameView(None, problem="cannot be decoded")


def camera_strips(cameras: Mapping[str, Sequence[FrameView]], first: int) -> list[Part]:
    """Row of images per camera, captioned with their steps from `first` on."""
    strips: list[Part] = []
    for camera, views in cameras.items():
        largest = _LARGE if len(views) <= FEW else _SMALL
        figures: list[Figure] = []
        for step, view in enumerate(views, first):
            text = step_text(step)
            figures.append(view.figure(text, f"{camera}, {text}", largest=largest))
        strips.append(Figures(figures, camera))
    return strips


def step_text(step: int) -> str:
    """Step relative to the anchor as text."""
    return f"{step:+d}" if step else "anchor"


@dataclass(frozen=True)
class EpisodeView:
    """Contents of an episode to show."""

    name: str  # id of the episode
    info: Mapping[str, object]  # map from name to value, shown as labels
    fps: float  # frames per second
    frames: Array  # frame of each position, int [S]
    shown: Sequence[int]  # positions in the strip, ascending
    cameras: Mapping[str, Sequence[FrameView]]  # map from camera to one view per shown position
    actions: Sequence[FieldValues]  # action fields over the positions
    proprioception: Sequence[FieldValues]  # proprioception fields over the positions
    tracks: Sequence[EndEffectorTrack]  # end effectors over the positions
    language: Mapping[str, Sequence[str]]  # map from kind of annotation to sentences
    spans: Sequence[LanguageSpan] = ()  # texts of some of the frames
    problems: Sequence[str] = ()  # messages about contents that cannot be shown
    videos: Sequence[Video] = ()  # a video per camera
    video_fps: float = 1.0  # frames per second of the videos

    @property
    def seconds(self) -> Array:
        """Time of each position [S]."""
        return self.frames / self.fps


def shown_positions(count: int, *, is_brief: bool) -> list[int]:
    """Positions in the strip: the first, the last, and evenly spaced ones between."""
    return spread(count, _BRIEF_FRAMES if is_brief else _STRIP_FRAMES)


def episode_tile(view: EpisodeView, number: int, anchor: str) -> Tile:
    """Link to an episode: an image of its first camera, number, name, length, text."""
    views = next(iter(view.cameras.values()), ())
    text = next((text for texts in view.language.values() for text in texts), "")
    image = views[len(views) // 2] if views else FrameView(None, problem="no camera")
    figure = image.figure("", view.name, largest=_SMALL)
    return Tile(figure, number, view.name, [counted(len(view.frames), "frame"), text], anchor)


def brief_episode(view: EpisodeView, anchor: str, hint: str) -> Fold:
    """An episode in small images and the charts of its actions, which opens with a click."""
    strips = [_strip(view, name, images, _SMALL) for name, images in view.cameras.items()]
    parts: list[Part] = [
        Tags(view.info),
        *(Text(problem, "note") for problem in view.problems),
        Quotes(view.language, limit=1),
        *strips,
        *field_charts(_time_axis(view), view.seconds, view.actions),
        Text(hint, "quiet"),
    ]
    return Fold(view.name, parts, anchor)


def episode_section(view: EpisodeView, anchor: str) -> Section:
    """An episode: strips of its cameras and charts over time."""
    axis = _time_axis(view)
    strips = [_strip(view, name, images, _LARGE) for name, images in view.cameras.items()]
    is_calibrated = any(image.camera for images in view.cameras.values() for image in images)
    legend = pose_legend(view.tracks) if is_calibrated else ""
    seek = "A click in a chart goes to that moment." if view.videos else ""
    timeline: list[Part] = [
        Titled("Videos", [Videos(view.videos), Text(seek, "quiet")]),
        Titled("Texts over time", _texts_over_time(view, axis)),
        Titled("Actions", field_charts(axis, view.seconds, view.actions)),
        Titled("Proprioception", field_charts(axis, view.seconds, view.proprioception)),
    ]
    parts: list[Part] = [
        Tags(view.info),
        *(Text(problem, "note") for problem in view.problems),
        Titled("Language", [Quotes(view.language)]),
        Titled("Recording", [Text(legend, "quiet"), *strips]),
        Timeline(timeline, axis.low, view.video_fps / view.fps),
    ]
    return Section(view.name, parts, is_under=True, anchor=anchor)


def _time_axis(view: EpisodeView) -> Axis:
    """Time axis with a mark for each image of the strips."""
    first = float(view.seconds[0])
    last = float(view.seconds[-1])
    if first == last:
        last = first + 1 / view.fps
    return Axis(first, last, marks=tuple(view.seconds[list(view.shown)].tolist()))


def _texts_over_time(view: EpisodeView, axis: Axis) -> list[Part]:
    """Texts of each kind over the frames that they describe."""
    kinds: dict[str, list[tuple[float, float, str]]] = {}
    for span in view.spans:
        start = (span.first - 0.5) / view.fps
        end = (span.last + 0.5) / view.fps
        kinds.setdefault(span.kind, []).append((start, end, span.text))
    return [Spans(kind, spans, axis) for kind, spans in kinds.items()]


def _strip(view: EpisodeView, name: str, images: Sequence[FrameView], largest: int) -> Figures:
    step = (view.shown[-1] - view.shown[0]) / max(len(view.shown) - 1, 1)
    reach = max(1, round(_TRAIL_COLUMNS * step))
    figures: list[Figure] = []
    for position, image in zip(view.shown, images, strict=True):
        caption = f"frame {int(view.frames[position])}"
        overlay = ""
        if image.camera is not None:
            overlay = draw_poses(view.tracks, position, image.camera, reach)
        figures.append(image.figure(caption, f"{name}, {caption}", overlay, largest))
    sizes = {shown.image.size for shown in images if shown.image}
    size = ", ".join(f"{width} x {height} px" for width, height in sorted(sizes))
    return Figures(figures, name, size)
