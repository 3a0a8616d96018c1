"""Cameras, depth and labels of a LeRobot episode: clips of videos, or columns of images."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.episode import Array, Clip, FrameSource
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector
from vlatool.media.frames import (
    ParquetImages,
    SingleImages,
    VideoFrames,
    VideoInfo,
    probe_video,
)
from vlatool.recordings.inventory import decide, encoded_thing, label_image
from vlatool.recordings.lerobot.depth import (
    USUAL_BITS,
    DepthVideo,
    ValueImages,
    code_bits,
    code_millimeters,
    depth_of_values,
)
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.folder import EpisodeFiles
from vlatool.recordings.lerobot.layout import EPISODES_FOLDER, FRAME_INDEX
from vlatool.recordings.lerobot.meta import Feature, Info
from vlatool.recordings.lerobot.tables import Rows, check_is_data_file
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import as_native_file, can_list
from vlatool.transforms.rates import NearestFrames

# Parts of a name that depth, labels and color of a camera do not share.
MOST_CUT = 5  # frames that a video may be shorter than the rows; the last rows are cut
_IMAGES = (".png", ".jpg", ".jpeg")
_SAYS_NOTHING = re.compile(
    r"observations?|images?|rgb|colors?|depth|mask|seg|segmentation|labels?|instance|semantic", re.I
)


def with_image_roles(root: Path, info: Info, path: Path, columns: Sequence[str]) -> Info:
    """The info, with depth and labels among the image columns by the first image of each.

    `path`: a file of rows, `columns`: its columns. The rules are the same for all formats.
    """
    features = dict(info.features)
    for feature in info.features.values():
        if feature.dtype != "image" or feature.is_depth or feature.name not in columns:
            continue
        images = _FirstImage(path, feature.name, root, [0])
        try:
            decision = decide(encoded_thing(feature.name, images.encoded(0)))
        except (DataError, ValueError):  # reading the camera reports it
            continue
        finally:
            images.close()
        if decision.role == "depth":
            features[feature.name] = replace(feature, is_depth=True, found=decision.note)
        elif decision.role == "labels":
            features[feature.name] = replace(feature, is_labels=True, found=decision.note)
    return replace(info, features=features)


class _FirstImage(ParquetImages):
    """The image in the first row of a file; the others are not decoded."""

    def _load_row_group(self, row: int) -> pa.ChunkedArray:
        file = self._file = pq.ParquetFile(as_native_file(self.path), buffer_size=2**16)
        for batch in file.iter_batches(1, columns=[self.column]):
            if len(batch):
                return pa.chunked_array([batch.column(0)])
        raise pa.ArrowInvalid(f"row {row} of 0 does not exist")


def missing_images(
    files: EpisodeFiles, feature: Feature, columns: Sequence[str] | None
) -> DataError | None:
    """Returns the error of a camera without a file or column in this episode; None if it has one.

    `columns` are the columns of the episode's file; None if it cannot be read.
    """
    label = f"episode {files.number}, camera {feature.name}"
    code = "missing_video"
    hint = ""
    if feature.dtype != "video":
        if columns is None or feature.name in columns:
            return None
        code = "missing_column"
        path = files.rows.path
        problem = "has no column of this name"
    elif feature.name in files.clips:
        path = files.clips[feature.name].path
        if path.exists():
            try:
                check_is_data_file(path, label)
            except DataError as error:
                return error
            return None
        problem = "is missing"
        hint = "download the file again, or go on without it: "
    elif pending_images(files, feature.name):
        return None
    else:
        path = files.dataset.root / EPISODES_FOLDER
        problem = "names no video for this episode"
    hint += "--skip-episodes-missing-cameras leaves out such episodes"
    return LEROBOT.error(code, path, label, problem, hint=hint, camera=feature.name)


def pending_images(files: EpisodeFiles, camera: str) -> list[Path]:
    """Images of an episode whose recorder has not made the video yet, in their order."""
    for separator in "-_":
        folder = files.root / "images" / camera / f"episode{separator}{files.number:06d}"
        if can_list(folder) and folder.is_dir():
            images = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGES]
            return sorted(images, key=natural_key)
    return []


class PendingImages(SingleImages):
    """Images that are to become a video."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def encoded(self, index: int) -> bytes:
        return read_file(self._paths[index])

    def path_of(self, index: int) -> Path:
        return self._paths[index]

    def image_error(self, index: int, reason: str) -> DataError:
        return LEROBOT.error("video_unreadable", self._paths[index], f"frame {index}", reason)


def open_camera(
    files: EpisodeFiles, camera: Feature, rows: Rows | None, report: Collector
) -> FrameSource | None:
    """Opens the images of a camera; without rows, its video is only checked."""
    if camera.dtype == "video":
        return _video(files, camera, rows, report)
    return None if rows is None else column_images(files, camera, rows, ParquetImages)


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
        step = partial(open_camera, files, camera, rows, report)
        frames = report.attempt(step, camera=camera.name)
        if frames is not None:
            cameras[camera.name] = frames
    return cameras


def column_images(
    files: EpisodeFiles, camera: Feature, rows: Rows, kind: Callable[..., ParquetImages]
) -> ParquetImages:
    """Images of a column."""
    numbers = (rows.order + rows.segment.first).tolist()
    return kind(rows.path, camera.name, files.root, numbers)


def open_labels(files: EpisodeFiles, feature: Feature, rows: Rows) -> FrameSource:
    """Segmentation labels of an image column; ValueError if it is a video, which changes them."""
    if feature.dtype != "image":
        raise ValueError(f"{feature.name} is a video, which alters labels")
    if feature.name not in rows.columns:
        raise ValueError("it has no column in the data")
    return column_images(files, feature, rows, partial(ValueImages, convert=label_image))


class SwappedColors(FrameSource):
    """Images whose colors are stored as blue, green, red."""

    def __init__(self, frames: FrameSource) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> tuple[int, int]:
        return self._frames.size

    def read(self, indices: Sequence[int]) -> Array:
        return self._frames.read(indices)[..., ::-1]


def open_values(
    files: EpisodeFiles, rows: Rows
) -> tuple[dict[str, FrameSource], dict[str, FrameSource], dict[str, str]]:
    """Returns the depth and the labels by camera, and the reasons by feature that is lost."""
    depth: dict[str, FrameSource] = {}
    labels: dict[str, FrameSource] = {}
    lost: dict[str, str] = {}
    for feature in files.dataset.info.features.values():
        if not feature.is_camera or not (feature.is_depth or feature.is_labels):
            continue
        sources = depth if feature.is_depth else labels
        try:
            if feature.is_depth:
                source = open_depth(files, feature, rows)
            else:
                source = open_labels(files, feature, rows)
        except ValueError as error:
            lost[feature.name] = str(error)
        except DataError as error:
            lost[feature.name] = error.message
        else:
            camera = camera_of_depth(feature.name, files)
            sources[feature.name if camera in sources else camera] = source
    return depth, labels, lost


def open_depth(files: EpisodeFiles, feature: Feature, rows: Rows) -> FrameSource:
    """Depth of a feature; ValueError or DataError says why it cannot be read."""
    if feature.dtype == "image":
        if feature.name not in rows.columns:
            raise ValueError("it has no column in the data")
        convert = partial(depth_of_values, unit=feature.quantizer["depth_unit"])
        images = column_images(files, feature, rows, partial(ValueImages, convert=convert))
        images.image(0)
        return images
    if feature.name in files.defects:
        raise files.defects[feature.name]
    if feature.name not in files.clips:
        raise ValueError("it has no video of this episode")
    clip = files.clips[feature.name]
    millimeters = code_millimeters(feature.quantizer)
    bits = code_bits(clip)
    if bits != USUAL_BITS:
        millimeters = code_millimeters(feature.quantizer, bits)
    source = DepthVideo(clip, len(rows), millimeters)
    count = probe_video(clip).num_frames
    if count < len(rows):
        raise ValueError(f"its video has {counted(count, 'frame')} for {counted(len(rows), 'row')}")
    return source


def camera_of_depth(depth: str, files: EpisodeFiles) -> str:
    """Returns the camera that depth or labels belong to.

    This is the only camera with the same name apart from words such as `depth`; if there is none,
    the feature itself.
    """
    cameras = [name for name in files.dataset.camera_names if _stem(name) == _stem(depth)]
    return cameras[0] if len(cameras) == 1 else depth


def _stem(name: str) -> list[str]:
    return [part for part in re.split(r"[._-]", name) if not _SAYS_NOTHING.fullmatch(part)]


def _video(
    files: EpisodeFiles, camera: Feature, rows: Rows | None, report: Collector
) -> FrameSource | None:
    if camera.name in files.defects:
        raise files.defects[camera.name]
    if camera.name not in files.clips:
        images = PendingImages(pending_images(files, camera.name))
        return None if rows is None else images
    clip = files.clips[camera.name]
    label = f"episode {files.number}, camera {camera.name}"
    info = probe_video(clip)
    if rows is None:
        return None
    first = first_frame(rows, files.dataset.info.fps)
    if first and info.num_frames >= first + len(rows):
        frames = VideoFrames(clip, info.num_frames)
        return NearestFrames(frames, np.arange(first, first + len(rows)))
    lost = len(rows) - info.num_frames
    if lost > min(MOST_CUT, len(rows) // 4):
        raise _too_short_error(clip, info, label, len(rows), camera.name)
    for code, problem in _video_problems(info, camera, len(rows), files.dataset.info.fps):
        message = f"{label}: {clip.path} {problem}"
        report.note(code, message, camera=camera.name, path=str(clip.path))
    return VideoFrames(clip, min(len(rows), info.num_frames))


def first_frame(rows: Rows, fps: float) -> int:
    """Number of the frame of the first row, if rows at the start were deleted; else 0.

    Frame numbers and times then both say so: they follow each other from the same frame on.
    """
    if not {FRAME_INDEX, "timestamp"} <= {*rows.columns}:
        return 0
    numbers = np.array(rows.numbers(FRAME_INDEX))
    times = np.array(rows.numbers("timestamp"), np.float64)
    first = int(numbers[0]) if len(numbers) else 0
    is_counted = first > 0 and (np.diff(numbers) == 1).all()
    return first if is_counted and (np.abs(times * fps - numbers) < 0.5).all() else 0


def _too_short_error(
    clip: Clip, info: VideoInfo, label: str, num_rows: int, camera: str
) -> DataError:
    code = "video_too_short"
    problem = f"has {counted(info.num_frames, 'frame')}"
    if clip.stop is not None:
        problem += f" from {clip.start:.2f} s to {clip.stop:.2f} s"
        if info.duration is not None and clip.stop > info.duration + 0.01:
            code = "clip_outside"
            problem += f", but ends at {info.duration:.2f} s"
    problem += f" for {counted(num_rows, 'row')}"
    place = {"camera": camera, "frames": info.num_frames}
    return LEROBOT.error(code, clip.path, label, problem, **place)


def _video_problems(
    info: VideoInfo, camera: Feature, num_rows: int, fps: float
) -> Iterator[tuple[str, str]]:
    """(code, problem) of a usable video that differs from the rows or from info.json."""
    if info.num_frames < num_rows:
        fewer = f"has {counted(info.num_frames, 'frame')} for {counted(num_rows, 'row')}"
        yield "rows_cut", f"{fewer}; the last rows are left out"
    if info.num_frames > num_rows:
        more = f"has {counted(info.num_frames, 'frame')} for {counted(num_rows, 'row')}"
        yield "extra_frames", f"{more}; the last frames are not used"
    if info.fps is not None and abs(float(info.fps) - fps) > 0.01:
        yield "video_fps", f"has {float(info.fps):g} fps, the data have {fps:g}"
    if camera.shape and not set(info.size) <= set(camera.shape):
        height, width = info.size
        declared = f"but meta/info.json says {list(camera.shape)}"
        yield "picture_size", f"is {width}x{height} (w x h), {declared}"
