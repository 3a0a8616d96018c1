"""Which folders, or which files with a common stem, are episodes; nothing is opened.

An episode is a folder with tables or videos, or the files `ep0.mp4`, `ep0.csv` whose names start
with the same number. Folders such as `front` or `cam_1`, whose names say what they hold, belong to
the episode above them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlatool.sources.folder.tables import SUFFIXES as TABLES
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import is_remote

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEXTS = (".txt", ".md")
EPISODE = "{episode}"  # stands for the name of an episode in names of its files
_HIDDEN = re.compile(
    r"^\.|~$|\.(tmp|part|partial|crdownload)$|^(thumbs\.db|desktop\.ini|__macosx)$", re.I
)
_STORE = (".zgroup", ".zattrs", ".zarray", "zarr.json")
# Names of parts of an episode.
_PART = re.compile(
    r"(?<![a-z])(cam\w*|view|images?|img|rgb|colou?rs?|depths?|videos?|frames?|front|wrist|left|right"
    r"|top|side|head|hand|overhead|arms?|gripper|joints?|states?|actions?|proprio|sensors?|masks?"
    r"|labels?|low_?dim|data|robot|obs\w*|audios?|tactiles?)(?![a-z])",
    re.I,
)
# Tables that describe a data set or an episode, and have no rows of frames.
FACTS = re.compile(
    r"(.*[_.-])?(meta|metadata|info|config|args|settings|stats|statistics|readme|tasks?|dataset"
    r"|calib\w*|intrinsics|extrinsics|instructions?|annotations?|language|success|description)",
    re.I,
)


@dataclass
class FilesOfEpisode:
    """Files of an episode.

    Attributes:
        root: Folder that relative paths start from.
        name: Name of the folder, or the common stem; what `{episode}` stands for.
        is_stem: True if the files share a stem, for which `{episode}` stands in `files`.
        files: Name from the root on to the path, of all but images.
        images: Folder from the root on to its path, of folders with images.
        outside: Links that lead out of the source, and are not followed.
    """

    root: Path
    name: str
    is_stem: bool = False
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    images: dict[str, Path] = field(default_factory=dict[str, Path])
    outside: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def parts(self) -> set[str]:
        """Names of tables and videos, and folders of images."""
        rows = {name for name, path in self.files.items() if is_rows(path)}
        return rows | {f"{folder or '.'}/" for folder in self.images}

    @property
    def has_images_and_tables(self) -> bool:
        """True if it has images or a video, and a table."""
        videos = [path for path in self.files.values() if path.suffix.lower() in VIDEOS]
        tables = [path for path in self.files.values() if is_rows(path) and path not in videos]
        return bool(tables) and bool(videos or self.images)


@dataclass
class _Folder:
    """A folder with its visible files."""

    path: Path
    parts: tuple[str, ...]  # of its path from the source on
    names: list[str]

    def has_rows(self) -> bool:
        return any(is_rows(self.path / name) for name in self.names)

    def has_images(self) -> bool:
        return any(Path(name).suffix.lower() in IMAGES for name in self.names)


def is_rows(path: Path) -> bool:
    """True for tables and videos by their names, but for those that describe a data set."""
    suffix = path.suffix.lower()
    return suffix in VIDEOS or (suffix in TABLES and not FACTS.fullmatch(path.stem))


def find_episodes(source: Path) -> tuple[list[FilesOfEpisode], list[str]]:
    """Episodes below a source in natural order, and the names of files that belong to none."""
    folders = _folders(source)
    roots = _roots(folders)
    episodes: list[FilesOfEpisode] = []
    for root in sorted(roots, key=lambda parts: natural_key("/".join(parts))):
        inside = [folder for folder in folders if folder.parts[: len(root)] == root]
        whole = _whole(source, root, inside)
        episodes += _by_stem(whole) or [whole]
    used: set[Path] = set()
    for episode in episodes:
        used.update(episode.files.values(), episode.images.values(), episode.outside.values())
    stray: list[str] = []
    for folder in folders:
        for name in folder.names:
            is_image = Path(name).suffix.lower() in IMAGES
            path = folder.path if is_image else folder.path / name
            says_little = Path(name).suffix.lower() in TEXTS or FACTS.fullmatch(Path(name).stem)
            if path not in used and not says_little:
                stray.append("/".join((*folder.parts, name)))
    return episodes, stray


def _folders(source: Path) -> list[_Folder]:
    """Folders with visible files, from the top; a store of Zarr is a file of its parent."""
    folders: dict[tuple[str, ...], _Folder] = {}
    for path, children, names in walk(source):
        parts = path.relative_to(source).parts
        visible = sorted(name for name in names if not _HIDDEN.search(name))
        children[:] = sorted(name for name in children if not _HIDDEN.search(name))
        if parts and not set(_STORE).isdisjoint(names):
            children.clear()
            parent = folders.setdefault(parts[:-1], _Folder(path.parent, parts[:-1], []))
            parent.names.append(parts[-1])
            visible = [name for name in visible if Path(name).suffix.lower() in VIDEOS]
        folders[parts] = _Folder(path, parts, visible)
    return [folder for folder in folders.values() if folder.names]


def _roots(folders: Sequence[_Folder]) -> set[tuple[str, ...]]:
    """Folders that are episodes: those with rows, or the folder above that they are parts of."""
    with_rows = [folder for folder in folders if folder.has_rows()]
    twins: Counter[tuple[tuple[str, ...], str]] = Counter()
    for folder in with_rows:
        for name in folder.names:
            if is_rows(Path(name)):
                twins[folder.parts[:-1], name] += 1
    roots: set[tuple[str, ...]] = set()
    for folder in with_rows:
        roots.add(_root_of(folder, twins))
    outer = {root for root in roots if not any(_is_below(root, other) for other in roots)}
    # A table of the whole data set makes no episode of the folder that has all others.
    if () in outer and (inner := roots - {()}):
        outer = {root for root in inner if not any(_is_below(root, other) for other in inner)}
    for folder in folders:
        if folder.has_images() and not any(folder.parts[: len(root)] == root for root in outer):
            outer.add(_root_of(folder, twins))
    return outer


def _root_of(folder: _Folder, twins: Counter[tuple[tuple[str, ...], str]]) -> tuple[str, ...]:
    """The folder itself, or the next above it whose name does not say that it is a part."""
    parts = folder.parts
    has_twin = any(twins[parts[:-1], name] > 1 for name in folder.names)
    if parts and has_twin and not is_part(parts[-1]):
        return parts
    while parts and not is_numbered(parts[-1]):
        parts = parts[:-1]
    return parts


def _is_below(parts: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return len(parts) > len(other) and parts[: len(other)] == other


def is_part(name: str) -> bool:
    """True if a name says that it is a part of an episode, such as `wrist_cam`."""
    return _PART.search(name) is not None or name.endswith(".zarr")


def is_numbered(name: str) -> bool:
    """True for a name such as `episode_12` or `2024-05-01_10-30`."""
    return re.search(r"\d", name) is not None and not is_part(name)


def _whole(source: Path, root: tuple[str, ...], folders: Sequence[_Folder]) -> FilesOfEpisode:
    """A folder with all that is in it as one episode."""
    path = source.joinpath(*root)
    episode = FilesOfEpisode(path, root[-1] if root else source.absolute().name)
    limit = None if is_remote(source) else source.resolve()
    for folder in folders:
        at = "/".join(folder.parts[len(root) :])
        for name in folder.names:
            file, key = folder.path / name, f"{at}/{name}".lstrip("/")
            if limit is not None and not file.resolve().is_relative_to(limit):
                episode.outside[key] = file
            elif file.suffix.lower() in IMAGES:
                episode.images[at] = folder.path
            else:
                episode.files[key] = file
    return episode


def _by_stem(whole: FilesOfEpisode) -> list[FilesOfEpisode]:
    """The episodes of a folder whose files share stems; none if it is one episode."""
    stems: dict[str, list[str]] = {}
    for name, path in whole.files.items():
        if is_rows(path) and (stem := _stem_of(path.name)):
            stems.setdefault(stem, []).append(name)
    tables = [
        stem for stem, names in stems.items() if any(n.lower().endswith(TABLES) for n in names)
    ]
    if len(stems) < 2 or len(tables) < 2:
        return []
    episodes: list[FilesOfEpisode] = []
    for stem in sorted(stems, key=natural_key):
        episode = FilesOfEpisode(whole.root, stem, is_stem=True, outside=whole.outside)
        for name, path in whole.files.items():
            if _stem_of(path.name) == stem:
                folder, _, last = name.rpartition("/")
                key = EPISODE + last[len(stem) :]
                episode.files[f"{folder}/{key}".lstrip("/")] = path
        for at, path in whole.images.items():
            parts = at.split("/")
            if stem in parts:
                key = "/".join(EPISODE if part == stem else part for part in parts)
                episode.images[key] = path
        episodes.append(episode)
    return episodes


def _stem_of(name: str) -> str:
    """Start of a file name that says which episode it is of; empty if it has no number."""
    stem = Path(name).stem
    if (part := _PART.search(stem)) is not None:
        stem = stem[: part.start()].rstrip("_-. ")
    match = re.match(r".*\d", stem)
    return match[0] if match else ""


def image_series(names: Sequence[str]) -> Iterator[tuple[str, list[tuple[float, str]]]]:
    """(pattern, [(number, name)]) of the images of a folder, each in the order of its numbers.

    `000003_color_0.jpg` is number 3 of `*_color_0.jpg`: of several numbers the one that has most
    values counts the frames.
    """
    groups: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
    for name in names:
        path = Path(name)
        if path.suffix.lower() not in IMAGES:
            continue
        if re.fullmatch(r"\d+\.\d+", path.stem):  # seconds
            texts, numbers = ["", path.suffix], [path.stem]
        else:
            pieces = re.split(r"(\d+)", name)
            texts, numbers = pieces[::2], pieces[1::2]
        groups.setdefault(tuple(texts), []).append((numbers, name))
    for texts, members in groups.items():
        values = [set(column) for column in zip(*(numbers for numbers, _ in members), strict=True)]
        position = max(range(len(values)), key=lambda index: len(values[index]), default=None)
        series: dict[str, list[tuple[float, str]]] = {}
        for numbers, name in members:
            filled = list(numbers)
            if position is not None and len(members) > 1:
                filled[position] = "*"
            pieces = [piece for pair in zip(texts, [*filled, ""], strict=True) for piece in pair]
            number = float(numbers[position]) if position is not None else 0.0
            series.setdefault("".join(pieces), []).append((number, name))
        for pattern, frames in series.items():
            yield pattern, sorted(frames)
