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
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlatool.artifacts.stored_image import image_info
from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes
from vlatool.sources.base import id_part, no_episodes
from vlatool.sources.images.config import ImagesConfig
from vlatool.sources.images.files import ImageFiles
from vlatool.sources.images.findings import IMAGES
from vlatool.sources.order import natural_key, unique_refs
from vlatool.sources.rules import SOURCE, check_cameras
from vlatool.storage.background import in_parallel
from vlatool.storage.tree import walk
from vlatool.storage.uri import can_list, is_remote

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


class ImagesReader:
    """Reader of folders `episode_*` of images, or of one folder of images as one episode."""

    Config: ClassVar[type[ConfigModel]] = ImagesConfig
    findings: ClassVar[FindingCodes] = IMAGES
    default_sink: ClassVar[str] = "image-shards"
    # Folders of many formats contain images.
    is_fallback: ClassVar[bool] = True

    def __init__(self, config: ImagesConfig) -> None:
        self.config = config
        self.source_findings: list[Finding] = []

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """All folders of images, one level below a source or below its `images/`.

        Raises:
            DataError: `data.no_episodes`.
        """
        findings: list[Finding] = []
        refs_of: dict[Path, list[EpisodeRef]] = {}
        for source in sources:
            if source.resolve() in refs_of:
                message = f"{source} is given twice; read once"
                findings.append(SOURCE("given_twice", message, path=str(source)))
                continue
            refs_of[source.resolve()] = self._refs(source, findings)
        self.source_findings = findings
        return unique_refs([ref for refs in refs_of.values() for ref in refs])

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """One camera; the number of images is known from the names."""
        frames = sum(ref.extras["pictures"] for ref in refs)
        return Survey(len(refs), {CAMERA: None}, {}, frames)

    def read(self, ref: EpisodeRef) -> Episode:
        """An episode whose images stay on disk.

        Raises:
            DataError: `data.no_pictures`.
        """
        names = self._scan(ref.path).images
        if not names:
            raise DataError(
                f"{ref.path}: has no images ({', '.join(self.config.extensions)})",
                hint="exclude the episode with --episodes, or name other --extensions",
                code="data.no_pictures",
                details={"path": str(ref.path)},
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
        """Findings on the images of an episode; with `deep` every image is decoded."""
        try:
            images = self.read(ref).cameras[CAMERA]
        except DataError as error:
            yield IMAGES.from_error(error, episode=ref.id)
            return
        assert isinstance(images, ImageFiles)
        broken = False
        for finding in _check_images(images, ref.id):
            broken = broken or finding.severity == "error"
            yield finding
        if deep and not broken:
            yield from check_cameras(ref.id, {CAMERA: images})

    def _refs(self, source: Path, findings: list[Finding]) -> list[EpisodeRef]:
        """Episodes of one source."""
        if not can_list(source) or not source.is_dir():
            raise no_episodes(source, _SEARCHED)
        for root in (source, source / _IMAGES):
            folders = self._episodes(root)
            if not any(folder.images for folder in folders):
                folders = [scanned for scanned in [self._scan(root)] if scanned.images]
            if folders:
                findings += _ignored_files(source, folders)
                return [_ref(folder, root, source) for folder in folders]
        raise no_episodes(source, _SEARCHED)

    def _episodes(self, root: Path) -> list[_Folder]:
        """Folders `episode_*` of a folder."""
        if not root.is_dir():
            return []
        paths = [
            child for child in root.iterdir() if child.name.startswith(_EPISODE) and child.is_dir()
        ]
        paths.sort(key=lambda path: natural_key(path.name))
        if not is_remote(root):
            return [self._scan(path) for path in paths]
        return list(in_parallel(self._scan, paths, _LISTED_AT_ONCE))

    def _scan(self, path: Path) -> _Folder:
        """Files directly in a folder, by type."""
        if not path.is_dir():
            return _Folder(path, (), 0, Counter())
        names = sorted(next(iter(walk(path)))[2])
        hidden = [name for name in names if name.startswith(".") or name.endswith(_TEMPORARY)]
        visible = [name for name in names if name not in set(hidden)]
        suffixes = tuple(self.config.extensions)
        images = tuple(name for name in visible if name.lower().endswith(suffixes))
        others = Counter(
            Path(name).suffix for name in visible if not name.lower().endswith(suffixes)
        )
        return _Folder(path, images, len(hidden), others)


def _ref(folder: _Folder, root: Path, source: Path) -> EpisodeRef:
    location = source.absolute()
    is_tree = location.name == _IMAGES and root == source and folder.path != source
    dataset = id_part((location.parent if is_tree else location).name)
    episode_id = dataset if folder.path == root else id_part(folder.path.name)
    match = _NUMBER.match(folder.path.name)
    return EpisodeRef(
        id=episode_id,
        path=folder.path,
        source=str(source),
        number=int(match[1]) if match else None,
        task=dataset,
        extras={"pictures": len(folder.images)},
    )


def _ignored_files(source: Path, folders: Sequence[_Folder]) -> Iterator[Finding]:
    """Findings on the files of a source that are not images."""
    hidden = sum(folder.hidden for folder in folders)
    others = sum((folder.others for folder in folders), Counter[str]())
    if hidden:
        message = f"{source}: {hidden} hidden or temporary files are ignored"
        yield IMAGES("hidden_files", message, path=str(source))
    if others:
        kinds = ", ".join(f"{count} {suffix or 'none'}" for suffix, count in others.items())
        message = f"{source}: files that are not images are ignored, by suffix: {kinds}"
        yield IMAGES("other_files", message, path=str(source))


def _check_images(images: ImageFiles, episode: str) -> Iterator[Finding]:
    """Findings on the content of each image and on differing sizes."""
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
            yield IMAGES("several_frames", f"{path}: has {info.frames} frames", **location)
        elif not info.is_plain:
            yield IMAGES("not_rgb", f"{path}: is not plain 8-bit RGB", **location)
    if len(sizes) > 1:
        counts = ", ".join(f"{count} of {size[1]}x{size[0]}" for size, count in sizes.items())
        yield IMAGES("mixed_sizes", f"{episode}: images differ in size: {counts}", episode=episode)
