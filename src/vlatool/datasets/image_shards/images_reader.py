"""Folders of images as episodes.

All images of a folder are the frames of one camera, in the order of their names. Folders with the
windows of a LIBERO data set have images of two cameras, whose names differ in their prefix; in the
order of names the second camera follows the first, as in the published shards. File names carry no
other information; they are stored with their frames.
Source: reference/future-vla 2.1.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator

from vlatool.config.base import ConfigModel, option
from vlatool.datasets.jsonl.layout import MANIFEST, WindowManifest, lines_files, missing_images
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.media.frames import SingleImages
from vlatool.media.images import image_info
from vlatool.media.lines import LINES_SUFFIX
from vlatool.recordings.base import FormatReader, id_part, no_episodes, unique_refs
from vlatool.recordings.rules import SOURCE, check_cameras
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import can_list, is_remote

# Source: reference/future-vla 2.1
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class ImagesConfig(ConfigModel):
    """Options for folders of images."""

    extensions: list[str] = option(
        list(EXTENSIONS), "Endings of image files; upper and lower case are equal.", min_length=1
    )

    @field_validator("extensions")
    @classmethod
    def _with_dots(cls, value: list[str]) -> list[str]:
        return [f".{extension.lower().removeprefix('.')}" for extension in value]


_AGAIN = "copy the image again, or leave the episode out with --exclude"
_CONVERTED = "nothing, if the colors are right: the image is converted to RGB"

IMAGES = FindingCodes(
    "images",
    no_pictures=error("The folder of an episode has no images.", "leave it out with --exclude"),
    picture_unreadable=error("An image is cut off, damaged or no image file.", _AGAIN),
    picture_too_large=error("An image file is larger than 256 MiB.", _AGAIN),
    missing_file=error(
        "An image is a broken link, or is missing although the manifest of its windows counts it.",
        _AGAIN,
    ),
    not_rgb=warning(
        "An image is grayscale, transparent, interlaced, or not 8 bits per channel.", _CONVERTED
    ),
    several_frames=warning(
        "An image is an animation.", "nothing, if the first frame is the one you want"
    ),
    mixed_sizes=warning(
        "The images of an episode have different sizes.", "resize them with --resize-images-size"
    ),
    hidden_files=info("Hidden or temporary files are ignored."),
    other_files=info("Files without the ending of an image are ignored."),
)


LARGEST_FILE = 2**28
# Number of remote files that are fetched together; small beside the memory of a worker.
_AT_ONCE = 8


class ImageFiles(SingleImages):
    """Image files as a `FrameSource`; images of different sizes are read one at a time."""

    may_differ: ClassVar[bool] = True

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._prefetched: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prefetched": {}}

    def path_of(self, index: int) -> Path:
        return self.paths[index]

    def encoded(self, index: int) -> bytes:
        if index not in self._prefetched:
            indices = range(index, min(index + _AT_ONCE, len(self)))
            contents = read_byte_ranges(
                (ByteRange(self.paths[position], 0, LARGEST_FILE + 1) for position in indices),
                _AT_ONCE,
            )
            self._prefetched = {}
            for position in indices:
                try:
                    self._prefetched[position] = next(contents)
                except (FileNotFoundError, IsADirectoryError):
                    break
                except OSError as error:
                    raise self.image_error(position, error.strerror or str(error)) from error
            if index not in self._prefetched:
                raise DataError.at(
                    self.paths[index],
                    "does not exist; the link is broken",
                    hint=_AGAIN,
                    code="data.missing",
                    finding="missing_file",
                    frame=index,
                )
        data = self._prefetched[index]
        if len(data) > LARGEST_FILE:
            raise self._error(index, f"has more than {LARGEST_FILE:,} bytes", "picture_too_large")
        return data

    def image_error(self, index: int, reason: str) -> DataError:
        return self._error(index, f"unreadable image: {reason}", "picture_unreadable")

    def _error(self, index: int, problem: str, finding: str) -> DataError:
        return DataError.at(
            self.paths[index],
            problem,
            hint=_AGAIN,
            code="data.broken",
            finding=finding,
            frame=index,
        )


CAMERA = "image"
_SEARCHED = "folders episode_* with images, directly or in images/, or images directly in it"
_EPISODE = "episode_"
_IMAGES = "images"
_NUMBER = re.compile(r"^episode_(\d+)$")
_TEMPORARY = (".tmp", ".part", ".partial", ".crdownload", "~")
_LISTED_AT_ONCE = 16
# Images have no time; this is the frame rate of episodes without one.
_FPS = 1.0


@dataclass(frozen=True)
class _Folder:
    """Files of one episode, by type."""

    path: Path
    images: tuple[str, ...]
    hidden: int
    others: Counter[str]


class ImagesReader(FormatReader):
    """Reader of folders `episode_*` of images, or of one folder of images as one episode."""

    Config: ClassVar[type[ConfigModel]] = ImagesConfig
    findings: ClassVar[FindingCodes | None] = IMAGES
    default_sink: ClassVar[str] = "image-shards"
    # Folders of many formats contain images.
    is_fallback: ClassVar[bool] = True

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """All folders of images, one level below a source or below its `images/`."""
        findings: list[Finding] = []
        known: set[Path] = set()
        refs: list[EpisodeRef] = []
        for source in sources:
            if source.resolve() in known:
                message = f"you named {source} twice; it is read once"
                findings.append(SOURCE("given_twice", message, path=str(source)))
                continue
            known.add(source.resolve())
            refs += self._refs(source, findings)
        self.source_findings = findings
        return unique_refs(refs)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """One camera; the number of images is known from the names."""
        frames = sum(ref.extras["pictures"] for ref in refs)
        return Survey(len(refs), {CAMERA: None}, {}, frames)

    def read(self, ref: EpisodeRef) -> Episode:
        names = self._scan(ref.path).images
        _check_counted(ref, names)
        if not names:
            raise DataError.at(
                ref.path,
                f"has no images ({', '.join(self.config.extensions)})",
                hint="leave the episode out with --exclude, or name the endings with --extensions",
                code="data.missing",
                finding="no_pictures",
            )
        return Episode(
            id=ref.id,
            task=ref.task,
            fps=_FPS,
            num_frames=len(names),
            cameras={CAMERA: ImageFiles([ref.path / name for name in names])},
            lowdim={},
            frame_metadata={"file": names},
            extras={"dataset": ref.task},
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        try:
            images = self.read(ref).cameras[CAMERA]
        except DataError as error:
            yield IMAGES.from_error(error, episode=ref.id)
            return
        assert isinstance(images, ImageFiles)
        is_broken = False
        for finding in _check_images(images, ref.id):
            is_broken |= finding.severity == "error"
            yield finding
        if deep and not is_broken:
            yield from check_cameras(ref.id, {CAMERA: images})

    def _refs(self, source: Path, findings: list[Finding]) -> list[EpisodeRef]:
        if not can_list(source) or not source.is_dir():
            raise no_episodes(source, _SEARCHED)
        for root in (source, source / _IMAGES):
            folders = self._episodes(root)
            if not any(folder.images for folder in folders):
                folder = self._scan(root)
                folders = [folder] if folder.images else []
            if not folders:
                continue
            findings += _ignored_files(source, folders)
            windows = _windows_of(folders[0].path)
            if windows is not None:
                folders += _lost_folders(root, folders)
                folders.sort(key=lambda folder: natural_key(folder.path.name))
            return [_ref(folder, root, source, windows) for folder in folders]
        raise no_episodes(source, _SEARCHED)

    def _episodes(self, root: Path) -> list[_Folder]:
        if not root.is_dir():
            return []
        paths = [path for path in root.iterdir() if path.name.startswith(_EPISODE)]
        paths = [path for path in paths if path.is_dir()]
        paths.sort(key=lambda path: natural_key(path.name))
        if not is_remote(root):
            return [self._scan(path) for path in paths]
        return list(in_parallel(self._scan, paths, _LISTED_AT_ONCE))

    def _scan(self, path: Path) -> _Folder:
        """Files directly in a folder."""
        images: list[str] = []
        hidden = 0
        others: Counter[str] = Counter()
        if path.is_dir():
            suffixes = tuple(self.config.extensions)
            for name in sorted(next(iter(walk(path)))[2]):
                if name.startswith(".") or name.endswith(_TEMPORARY):
                    hidden += 1
                elif name.lower().endswith(suffixes):
                    images.append(name)
                else:
                    others[Path(name).suffix] += 1
        return _Folder(path, tuple(images), hidden, others)


def _windows_of(folder: Path) -> WindowManifest | None:
    """Manifest of the windows whose images a folder of an episode holds; None without one."""
    images = folder.absolute().parent
    if images.name != _IMAGES or not folder.name.startswith(_EPISODE):
        return None
    with suppress(DataError):  # `verify` of the windows reports it
        return MANIFEST.read(images.parent)
    return None


def _lost_folders(root: Path, folders: Sequence[_Folder]) -> list[_Folder]:
    """Folders of episodes that have windows, but no images."""
    present = {folder.path.name for folder in folders}
    lost: list[_Folder] = []
    if root.name in present:  # a single episode
        return lost
    for path in lines_files(root.absolute().parent):
        name = path.name.removesuffix(LINES_SUFFIX)
        if name not in present:
            lost.append(_Folder(root / name, (), 0, Counter()))
    return lost


def _check_counted(ref: EpisodeRef, names: Sequence[str]) -> None:
    """Raises DataError if images are missing that the windows of an episode have."""
    windows: WindowManifest | None = ref.extras.get("windows")
    if windows is None:
        return
    tree = ref.path.absolute().parent.parent
    images = set(names)
    missing = missing_images(tree, windows, ref.path.name, images)
    if missing:
        more = f" and {len(missing) - 1} more images" if len(missing) > 1 else ""
        raise DataError.at(
            ref.path / missing[0],
            f"is missing{more}: its windows have {counted(len(images) + len(missing), 'image')}, "
            f"{len(images)} are here",
            hint="copy the images again, write the windows again, or leave the episode out with "
            "--exclude",
            code="data.missing",
            finding="missing_file",
            pictures=missing[:20],
        )


def _ref(folder: _Folder, root: Path, source: Path, windows: WindowManifest | None) -> EpisodeRef:
    location = source.absolute()
    if location.name == _IMAGES and root == source and folder.path != source:
        location = location.parent  # a tree of windows
    dataset = id_part(location.name)
    match = _NUMBER.match(folder.path.name)
    return EpisodeRef(
        id=dataset if folder.path == root else id_part(folder.path.name),
        path=folder.path,
        source=str(source),
        number=int(match[1]) if match else None,
        task=dataset,
        extras={"pictures": len(folder.images), "windows": windows},
    )


def _ignored_files(source: Path, folders: Sequence[_Folder]) -> Iterator[Finding]:
    hidden = 0
    others: Counter[str] = Counter()
    for folder in folders:
        hidden += folder.hidden
        others.update(folder.others)
    if hidden:
        yield IMAGES.at("hidden_files", source, f"{hidden} hidden or temporary files are ignored")
    if others:
        kinds = ", ".join(f"{count} {suffix or 'none'}" for suffix, count in others.items())
        problem = f"files that are not images are ignored, by suffix: {kinds}"
        yield IMAGES.at("other_files", source, problem)


def _check_images(images: ImageFiles, episode: str) -> Iterator[Finding]:
    sizes: Counter[tuple[int, int]] = Counter()
    for frame, path in enumerate(images.paths):
        location = {"episode": episode, "path": str(path), "frame": frame}
        try:
            info = image_info(images.encoded(frame))
        except ValueError as error:
            yield IMAGES.from_error(images.image_error(frame, str(error)), episode=episode)
            continue
        except DataError as error:
            yield IMAGES.from_error(error, episode=episode)
            continue
        sizes[info.size] += 1
        if info.frames > 1:
            yield IMAGES(
                "several_frames", f"{path}: has {counted(info.frames, 'frame')}", **location
            )
        elif not info.is_plain:
            yield IMAGES("not_rgb", f"{path}: is not plain 8-bit RGB", **location)
    if len(sizes) > 1:
        counts = ", ".join(f"{count} of {size[1]}x{size[0]}" for size, count in sizes.items())
        yield IMAGES("mixed_sizes", f"{episode}: images differ in size: {counts}", episode=episode)
