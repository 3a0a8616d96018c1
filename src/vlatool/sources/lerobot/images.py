"""Cameras and depth of a LeRobot episode: clips of videos, or columns of images."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from vlatool.artifacts.lerobot.dataset import EpisodeFiles
from vlatool.artifacts.lerobot.findings import LEROBOT
from vlatool.artifacts.lerobot.format import EPISODES_FOLDER
from vlatool.artifacts.lerobot.meta import Feature
from vlatool.artifacts.lerobot.tables import Rows, check_is_data_file
from vlatool.episode import Array, Clip, FrameSource
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector
from vlatool.sources.frames import (
    ParquetImages,
    SingleImages,
    VideoFrames,
    VideoInfo,
    probe_video,
)
from vlatool.sources.lerobot.depth import DepthImages, DepthVideo, code_millimeters

# Parts of a name that depth and color of a camera do not share.
_SAYS_NOTHING = re.compile(r"observations?|images?|rgb|colors?|depth", re.I)


def missing_cameras(files: EpisodeFiles, rows: Rows | None) -> Iterator[tuple[str, DataError]]:
    """Errors of cameras that the data set declares, but that have no file or column here. The
    caller decides by the selected cameras whether the episode is used nevertheless.
    """
    for camera in files.dataset.cameras:
        code, path, problem = "data.missing_column", files.rows.path, "has no such column"
        hint = ""
        if camera.dtype == "video":
            clip = files.clips.get(camera.name)
            code, problem = "data.missing_video", "names no video"
            path = files.dataset.root / EPISODES_FOLDER
            if clip is not None:
                path, problem, hint = clip.path, "is missing", "download the file again; "
            if clip is not None and path.exists():
                try:
                    check_is_data_file(path, f"episode {files.number}, camera {camera.name}")
                except DataError as error:
                    yield camera.name, error
                continue
        elif rows is None or camera.name in rows.columns:
            continue
        yield (
            camera.name,
            DataError(
                f"episode {files.number}, camera {camera.name}: {path} {problem}",
                hint=f"{hint}`preprocess` reads what is here with "
                "--camera-names, --exclude or --skip-episodes-missing-cameras",
                code=code,
                details={"path": str(path), "camera": camera.name},
            ),
        )


def open_cameras(
    files: EpisodeFiles,
    rows: Rows | None,
    missing: Mapping[str, DataError],
    report: Collector,
) -> dict[str, FrameSource]:
    cameras: dict[str, FrameSource] = {}
    for camera in files.dataset.cameras:
        if camera.name in missing:
            if not (report.strict or files.dataset.is_without_videos):
                report.add_error(missing[camera.name], camera=camera.name)
            continue
        read = _video if camera.dtype == "video" else _images
        frames = report.attempt(partial(read, files, camera, rows, report), camera=camera.name)
        if frames is not None:
            cameras[camera.name] = frames
    return cameras


def _images(
    files: EpisodeFiles, camera: Feature, rows: Rows | None, report: Collector
) -> SingleImages | None:
    return None if rows is None else column_images(files, camera, rows, ParquetImages)


def column_images(
    files: EpisodeFiles, camera: Feature, rows: Rows, kind: Callable[..., ParquetImages]
) -> SingleImages:
    """Images of a column, of files one after the other if the rows are in several."""
    if len(rows.segments) == 1:
        segment = rows.segments[0]
        numbers = (rows.order + segment.first).tolist()
        return kind(segment.path, camera.name, files.root, numbers)
    parts: list[ParquetImages] = []
    for segment in rows.segments:
        assert segment.count is not None, "rows of a shared file are counted"
        numbers = range(segment.first, segment.first + segment.count)
        parts.append(kind(segment.path, camera.name, files.root, numbers))
    return JoinedImages(parts, rows.order.tolist())


class JoinedImages(SingleImages):
    """Image columns of several files, one after the other."""

    def __init__(self, parts: Sequence[ParquetImages], order: Sequence[int]) -> None:
        """`order`: place of each frame among the rows of all parts."""
        self._parts, self._order = parts, order

    def __len__(self) -> int:
        return len(self._order)

    def _part(self, index: int) -> tuple[ParquetImages, int]:
        row = self._order[index]
        for part in self._parts:
            if row < len(part):
                return part, row
            row -= len(part)
        raise IndexError(f"frame {index} of {len(self)}")

    @property
    def size(self) -> tuple[int, int]:
        return self._parts[0].size

    def encoded(self, index: int) -> bytes:
        part, row = self._part(index)
        return part.encoded(row)

    def image(self, index: int) -> Array:
        part, row = self._part(index)
        return part.image(row)

    def image_error(self, index: int, reason: str) -> DataError:
        part, row = self._part(index)
        return part.image_error(row, reason)


def open_depth(files: EpisodeFiles, rows: Rows) -> tuple[dict[str, FrameSource], dict[str, str]]:
    """Map from camera to its depth, and from depth that cannot be read to the reason."""
    depth: dict[str, FrameSource] = {}
    lost: dict[str, str] = {}
    for feature in files.dataset.info.features.values():
        if not (feature.is_camera and feature.is_depth):
            continue
        try:
            source = _open_depth(files, feature, rows)
        except ValueError as error:
            lost[feature.name] = str(error)
        except DataError as error:
            lost[feature.name] = error.message
        else:
            camera = _camera_of(feature.name, files)
            depth[feature.name if camera in depth else camera] = source
    return depth, lost


def _open_depth(files: EpisodeFiles, feature: Feature, rows: Rows) -> FrameSource:
    """Depth of a feature; ValueError or DataError says why it cannot be read."""
    if feature.dtype == "image":
        if feature.name not in rows.columns:
            raise ValueError("it has no column in the data")
        unit = feature.quantizer["depth_unit"]
        images = column_images(files, feature, rows, partial(DepthImages, unit=unit))
        images.image(0)
        return images
    if feature.name in files.defects:
        raise files.defects[feature.name]
    if feature.name not in files.clips:
        raise ValueError("it has no video of this episode")
    clip = files.clips[feature.name]
    source = DepthVideo(clip, len(rows), code_millimeters(feature.quantizer))
    count = probe_video(clip).num_frames
    if count < len(rows):
        raise ValueError(f"its video has {counted(count, 'frame')} for {counted(len(rows), 'row')}")
    return source


def _camera_of(depth: str, files: EpisodeFiles) -> str:
    """Camera with the depth: the only one of that name but for words such as `depth`, else the
    feature itself.
    """
    cameras = [name for name in files.dataset.camera_names if _stem(name) == _stem(depth)]
    return cameras[0] if len(cameras) == 1 else depth


def _stem(name: str) -> list[str]:
    return [part for part in re.split(r"[._-]", name) if not _SAYS_NOTHING.fullmatch(part)]


def _video(
    files: EpisodeFiles, camera: Feature, rows: Rows | None, report: Collector
) -> VideoFrames | None:
    clip = files.clips[camera.name]
    path = clip.path
    label = f"episode {files.number}, camera {camera.name}"
    location = {"camera": camera.name, "path": str(path)}
    if camera.name in files.defects:
        raise files.defects[camera.name]
    info = probe_video(clip)
    if rows is None:
        return None
    if info.num_frames < len(rows):
        raise _too_short_error(clip, info, label, len(rows), location)
    fps = files.dataset.info.fps
    for code, problem in _video_problems(info, camera, len(rows), fps):
        report.note(code, f"{label}: {path} {problem}", **location)
    return VideoFrames(clip, len(rows))


def _too_short_error(
    clip: Clip, info: VideoInfo, label: str, num_rows: int, location: Mapping[str, str]
) -> DataError:
    frames, data = counted(info.num_frames, "frame"), f"the data has {counted(num_rows, 'row')}"
    code, problem = "video_too_short", f"{clip.path} has {frames}, {data}"
    if clip.stop is not None:
        part = f"{clip.start:.2f} s to {clip.stop:.2f} s"
        problem = f"{clip.path} has {frames} from {part}, {data}"
        if info.duration is not None and clip.stop > info.duration + 0.01:
            code = "clip_outside"
            problem = f"its frames are {part} of {clip.path}, which ends at {info.duration:.2f} s"
    return DataError(
        f"{label}: {problem}",
        hint=LEROBOT.codes[code].action,
        code=f"data.{code}",
        details={**location, "frames": info.num_frames},
    )


def _video_problems(
    info: VideoInfo, camera: Feature, num_rows: int, fps: float
) -> Iterator[tuple[str, str]]:
    """(code, problem) of a usable video that differs from the rows or from info.json."""
    if info.num_frames > num_rows:
        more = f"has {counted(info.num_frames, 'frame')} for {counted(num_rows, 'row')}"
        yield "extra_frames", f"{more}; the last ones are unused"
    if info.fps is not None and abs(float(info.fps) - fps) > 0.01:
        yield "video_fps", f"has {float(info.fps):g} fps, the data {fps:g}"
    if camera.shape and not set(info.size) <= set(camera.shape):
        height, width = info.size
        declared = f"meta/info.json says {list(camera.shape)}"
        yield "picture_size", f"is {width}x{height} (w x h), {declared}"
