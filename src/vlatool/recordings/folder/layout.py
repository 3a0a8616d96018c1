"""Which folders, or which files with a common stem, are episodes; nothing is opened.

An episode is a folder with tables or videos, or the files `ep0.mp4`, `ep0.csv` whose names start
with the same number. Folders such as `front` or `cam_1`, whose names say what they hold, belong to
the episode above them.
"""

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from vlatool.jobs.record import read_record
from vlatool.recordings.base import walk_source
from vlatool.recordings.folder.tables import is_table, plain
from vlatool.storage.tree import natural_key

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEXTS = (".txt", ".md")
EPISODE = "{episode}"  # stands for the name of an episode in names of its files
HIDDEN = re.compile(
    r"^\.|~$|\.(tmp|part|partial|crdownload)$|^(thumbs\.db|desktop\.ini|__macosx)$", re.I
)
_STORE = (".zgroup", ".zattrs", ".zarray", "zarr.json")
# Words of which names of parts of an episode consist: `wrist_cam`, `states`; not `open_top_drawer`.
_PART_WORD = re.compile(
    r"cam(era)?s?|views?|images?|img|rgb|colou?rs?|depths?|videos?|clips?|frames?|front|back|wrist"
    r"|left|right|top|bottom|side|head|hands?|overhead|arms?|gripper|joints?|high|low|base|ext"
    r"|external|third|person|ego|main|sensors?|imu|tactiles?|audios?|mic|masks?|labels?|realsense"
    r"|rs|zed|kinect|webcam|usb"
)
# These are parts without a number only: `data_003` is an episode.
_DATA_WORD = re.compile(
    r"data|states?|actions?|proprio|dim|lowdim|robot|obs|observations?|qpos|qvel|q|eef?|tcp|poses?"
    r"|numbers|values|tables?|csv|json|np[yz]|parquet|time(stamp)?s?"
)
_EPISODE_WORD = re.compile(r"ep\d|episode|demo|traj|take|trial|rollout|recording", re.I)
# Tables that describe a data set or an episode, and have no rows of frames.
FACTS = re.compile(
    r"(.*[_.-])?(meta|metadata|info|config|args|settings|stats|statistics|readme|tasks?|dataset"
    r"|metadata[_.+-].*|calib\w*|intrinsics|extrinsics|instructions?|annotations?|language|success|description)",
    re.I,
)


def is_video(name: str) -> bool:
    """True for videos by their names."""
    return Path(name).suffix.lower() in VIDEOS


def is_image(name: str) -> bool:
    """True for images by their names."""
    return Path(name).suffix.lower() in IMAGES


def is_rows(path: Path) -> bool:
    """True for tables and videos by their names, but for those that describe a data set."""
    has_rows = is_table(path) and not FACTS.fullmatch(plain(path).stem)
    return has_rows or is_video(path.name)


def is_part(name: str) -> bool:
    """True if a name says nothing but that it is a part of an episode, such as `wrist_cam_1`."""
    if name.endswith(".zarr"):
        return True
    words = re.findall(r"[a-z]+", name.lower())
    has_number = re.search(r"\d", name) is not None
    for word in words:
        is_data = _DATA_WORD.fullmatch(word) and not has_number
        if not _PART_WORD.fullmatch(word) and not is_data:
            return False
    return bool(words)


@dataclass
class FilesOfEpisode:
    """Files of an episode.

    Attributes:
        root: Folder that relative paths start from.
        name: Name of the folder, or the common stem; what `{episode}` stands for.
        is_stem: True if the files share a stem, for which `{episode}` stands in `files`.
        files: Name from the root on to the path, of all but images.
        images: Folder from the root on to its path, of folders with images.
    """

    root: Path
    name: str
    is_stem: bool = False
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    images: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def parts(self) -> set[str]:
        """Names of tables and videos, and folders of images."""
        names = {name for name, path in self.files.items() if is_rows(path)}
        for folder in self.images:
            names.add(f"{folder or '.'}/")
        return names

    @property
    def has_images_and_tables(self) -> bool:
        """True if it has a video and a table, or images and a table that is no JSON."""
        suffixes = {plain(path).suffix.lower() for path in self.files.values() if is_rows(path)}
        tables = suffixes.difference(VIDEOS)
        if tables != suffixes:
            return bool(tables)
        return bool(self.images and tables - {".json"})


# Folders


@dataclass
class _Folder:
    """A folder with its visible files."""

    path: Path
    parts: tuple[str, ...]  # of its path from the source on
    names: list[str]

    def has_rows(self) -> bool:
        return any(is_rows(Path(name)) for name in self.names)

    def has_images(self) -> bool:
        return any(is_image(name) for name in self.names)

    def row_names(self) -> list[str]:
        """Names of tables and videos, with `{episode}` for the name of the folder."""
        own = self.parts[-1] if self.parts else EPISODE
        return [name.replace(own, EPISODE) for name in self.names if is_rows(Path(name))]


def find_episodes(source: Path) -> tuple[list[FilesOfEpisode], list[str]]:
    """Episodes below a source in natural order, and the names of files that belong to none."""
    folders = _folders(source)
    roots = sorted(_roots(folders), key=lambda parts: natural_key("/".join(parts)))
    episodes: list[FilesOfEpisode] = []
    joined: set[tuple[str, ...]] = set()
    for same_name in _parallel(roots):
        episodes += _by_stem(_joined(source, same_name, folders))
        joined.update(same_name)
    for root in roots:
        if root not in joined:
            episodes += _by_stem(_whole(source, root, folders))
    episodes = _with_images_elsewhere(episodes)
    used: set[Path] = set()
    for episode in episodes:
        used.update(episode.files.values(), episode.images.values())
    stray: list[str] = []
    for folder in folders:
        for name in folder.names:
            path = folder.path if is_image(name) else folder.path / name
            says_little = re.match(r"readme|license|changelog", name, re.I)
            if path not in used and not says_little:
                stray.append("/".join((*folder.parts, name)))
    return episodes, stray


def _with_images_elsewhere(episodes: list[FilesOfEpisode]) -> list[FilesOfEpisode]:
    """Joins folders of images such as `images/front/ep_1` to the episode of `data/ep_1.csv`."""
    by_name: dict[str, FilesOfEpisode] = {}
    for episode in episodes:
        if episode.is_stem and episode.files:
            by_name.setdefault(_normal(episode.name), episode)
    rest: list[FilesOfEpisode] = []
    for episode in episodes:
        owner = by_name.get(_normal(episode.name))
        if episode.files or owner is None:
            rest.append(episode)
            continue
        place = f"{episode.root.parent.name}/{EPISODE}"
        for at, path in episode.images.items():
            owner.images[f"{place}/{at}".rstrip("/")] = path
    return rest


def _folders(source: Path) -> list[_Folder]:
    """Folders with visible files, from the top; a store of Zarr is a file of its parent."""
    folders: dict[tuple[str, ...], _Folder] = {}
    for path, children, names in walk_source(source):
        parts = path.relative_to(source).parts
        visible = sorted(name for name in names if not HIDDEN.search(name))
        children[:] = sorted(name for name in children if not HIDDEN.search(name))
        record = read_record(path)
        if record is not None and record.command not in ("sample", "download"):
            children.clear()  # a command made it of recordings: it is no recording itself
            continue
        if parts and not set(_STORE).isdisjoint(names):
            children.clear()
            parent = folders.setdefault(parts[:-1], _Folder(path.parent, parts[:-1], []))
            parent.names.append(parts[-1])
            visible = [name for name in visible if is_video(name)]
        folders[parts] = _Folder(path, parts, visible)
    return [folder for folder in folders.values() if folder.names]


def _roots(folders: Sequence[_Folder]) -> set[tuple[str, ...]]:
    """Folders that are episodes: those with rows, or the folder above that they are parts of."""
    with_rows = [folder for folder in folders if folder.has_rows()]
    twins: Counter[tuple[tuple[str, ...], str]] = Counter()
    for folder in with_rows:
        for name in folder.row_names():
            twins[folder.parts[:-1], name] += 1
    roots = {_root_of(folder, twins) for folder in with_rows}
    outer = _outermost(roots)
    # A table of a data set or a task makes no episode of the folder that has all episodes.
    for root in [*outer]:
        inner = {other for other in roots if _is_below(other, root)}
        are_episodes = all(_EPISODE_WORD.search(other[-1]) for other in inner)
        is_of_many = not root or (are_episodes and not _EPISODE_WORD.search(root[-1]))
        if inner and is_of_many:
            outer.remove(root)
            outer |= _outermost(inner)
    for folder in folders:
        if folder.has_images() and not any(folder.parts[: len(root)] == root for root in outer):
            outer.add(_root_of(folder, twins))
    return outer


def _root_of(folder: _Folder, twins: Counter[tuple[tuple[str, ...], str]]) -> tuple[str, ...]:
    """The folder itself, or the next folder above it that is not named like a part."""
    parts = folder.parts
    has_twin = any(twins[parts[:-1], name] > 1 for name in folder.row_names())
    if parts and has_twin and not is_part(parts[-1]):
        return parts
    while parts and is_part(parts[-1]):
        parts = parts[:-1]
    return parts


def _outermost(roots: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The folders that are below no other."""
    return {root for root in roots if not any(root[:depth] in roots for depth in range(len(root)))}


def _is_below(parts: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return len(parts) > len(other) and parts[: len(other)] == other


def _parallel(roots: Sequence[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Folders of one name in several folders of parts, such as `videos/ep0` and `data/ep0`."""
    by_name: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for root in roots:
        if len(root) > 1 and is_part(root[-2]):
            by_name.setdefault((*root[:-2], root[-1]), []).append(root)
    return [same_name for same_name in by_name.values() if len(same_name) > 1]


def _joined(
    source: Path, roots: Sequence[tuple[str, ...]], folders: Sequence[_Folder]
) -> FilesOfEpisode:
    """The episode that several folders of one name are together."""
    above = roots[0][:-2]
    joined = FilesOfEpisode(source.joinpath(*above), roots[0][-1], is_stem=True)
    for root in roots:
        whole = _whole(source, root, folders)
        place = f"{root[-2]}/{EPISODE}"
        for key, path in whole.files.items():
            joined.files[f"{place}/{key}"] = path
        for key, path in whole.images.items():
            joined.images[f"{place}/{key}".rstrip("/")] = path
    return joined


def _whole(source: Path, root: tuple[str, ...], folders: Sequence[_Folder]) -> FilesOfEpisode:
    """A folder with all that is in it as one episode."""
    name = root[-1] if root else source.absolute().name
    episode = FilesOfEpisode(source.joinpath(*root), name)
    for folder in folders:
        if folder.parts[: len(root)] != root:
            continue
        at = "/".join(folder.parts[len(root) :])
        for name in folder.names:
            file = folder.path / name
            key = f"{at}/{name}".lstrip("/")
            if plain(file).stem == episode.name and not at:
                key = EPISODE + file.name.removeprefix(episode.name)
                episode.is_stem = True
            if is_image(name):
                episode.images[at] = folder.path
            else:
                episode.files[key] = file
    return episode


# Files that share a stem


def _by_stem(whole: FilesOfEpisode) -> list[FilesOfEpisode]:
    """The episodes of a folder whose files share stems; else the folder itself."""
    stems = _stems(whole)
    if not stems:
        return [whole]
    episodes: dict[str, FilesOfEpisode] = {}
    for stem in sorted(set(stems.values()), key=natural_key):
        episodes[stem] = FilesOfEpisode(whole.root, "", is_stem=True)
    for name, path in whole.files.items():
        stem = stems.get(name)
        if stem is None:  # a file beside, of the longest stem that its name starts with
            stem = _longest_stem(plain(path).stem, episodes)
        if not stem:
            continue
        own = _prefix(plain(path).stem, stem) or stem
        episode = episodes[stem]
        episode.name = episode.name or own
        folder, _, last = name.rpartition("/")
        key = last.replace(own, EPISODE, 1)
        episode.files[f"{folder}/{key}".lstrip("/")] = path
    for at, path in whole.images.items():
        parts = at.split("/")
        for number, part in enumerate(parts):
            episode = episodes.get(_normal(part))
            if episode is not None:
                key = "/".join([*parts[:number], EPISODE, *parts[number + 1 :]])
                episode.images[key] = path
    return [*episodes.values()]


def _normal(stem: str) -> str:
    """A stem without the zeros that fill its numbers up: `ep_01` is `ep_1`."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", stem)


def _prefix(text: str, stem: str) -> str:
    """The start of a text that is a stem, with its zeros; empty if it does not start with it."""
    for end in range(len(text), 0, -1):
        is_end = end == len(text) or text[end] in "_-. "
        if is_end and _normal(text[:end]) == stem:
            return text[:end]
    return ""


def _longest_stem(text: str, stems: Container[str]) -> str:
    """The longest of the stems that a text starts with; empty if there is none."""
    for end in range(len(text), 0, -1):
        stem = _normal(text[:end])
        if stem in stems and _prefix(text, stem):
            return stem
    return ""


def _stems(whole: FilesOfEpisode) -> dict[str, str]:
    """File to the stem that it shares with others of its episode; empty if there are no such files.

    Each stem has a video and a table, or there is no video: `take1.mp4` beside `take1.csv`, or
    `demo_1.npz`. Some may lack one of both, then their episodes are broken.
    """
    stems: dict[str, str] = {}
    numbers: dict[str, str] = {}
    others: list[str] = []
    has_videos = False
    for name, path in whole.files.items():
        if not is_rows(path):
            continue
        has_videos = has_videos or is_video(name)
        stem = _stem_of(path.name)
        if stem:
            stems[name] = _normal(stem)
            numbers[name] = re.sub(r"\D", "", stems[name])
        else:
            others.append(name)
    kinds = _kinds(stems)
    are_pairs = [len(found) == 2 for found in kinds.values()]
    by_number = _kinds(numbers)
    all_counted = all(number and len(found) == 2 for number, found in by_number.items())
    if all_counted and 2 * len(by_number) == len(stems) and not any(are_pairs):
        return numbers  # clip_1.mp4 beside traj_1.csv
    if len(kinds) < 2 or (has_videos and not any(are_pairs)):
        return {}
    if any(is_video(name) for name in others) or (others and not all(are_pairs)):
        return {}  # a clip that all share, or tables beside: these are files of one episode
    is_numbered_throughout = all(re.search(r"\d", stem) for stem in kinds)
    return stems if is_numbered_throughout or all(are_pairs) else {}


def _kinds(stems: Mapping[str, str]) -> dict[str, set[bool]]:
    """Stem to the kinds of files that it has: True for videos, False for tables."""
    kinds: dict[str, set[bool]] = {}
    for name, stem in stems.items():
        kinds.setdefault(stem, set()).add(is_video(name))
    return kinds


def _stem_of(name: str) -> str:
    """Start of a file name that says which episode it is of; empty if it names a part.

    `ep0_front` is of `ep0`, `video_3` of `3`.
    """
    stem = plain(Path(name)).stem
    words = [word for word in re.split(r"[_\-. ]+", stem) if word]
    while len(words) > 1:
        if words[-1].isdecimal() and len(words) > 2 and is_part(words[-2]):
            words = words[:-2]  # `cam_1`
        elif is_part(words[-1]):
            words.pop()
        else:
            break
    while len(words) > 1 and is_part(words[0]):
        words.pop(0)
    if not words or is_part("_".join(words)):
        return ""
    start = stem.find(words[0])
    end = start
    for word in words:
        end = stem.index(word, end) + len(word)
    return stem[start:end]


# Images that count frames

_DATED = re.compile(
    r"(?<!\d)(?P<date>(19|20)\d\d-?[01]\d-?[0-3]\d)[T_ -]+(?P<time>\d\d[-:_]?\d\d[-:_]?\d\d)"
    r"(?:[._](?P<part>\d+))?"
)
_PARTED = re.compile(r"(?P<seconds>\d{9,10})[_-](?P<nanoseconds>\d{1,9})")
_DECIMAL = re.compile(r"(?<![\d.])\d{6,}\.\d+(?=\D*$)|^\d+\.\d+$")  # seconds or milliseconds


class ImageSeries(NamedTuple):
    """Images of a folder in the order of their numbers.

    Attributes:
        pattern: Their names, with `*` for the number.
        numbers: Number of each; ascending.
        names: Name of each.
    """

    pattern: str
    numbers: Sequence[float]
    names: Sequence[str]


def image_series(names: Sequence[str]) -> Iterator[ImageSeries]:
    """The series of the images of a folder.

    `000003_color_0.jpg` is number 3 of `*_color_0.jpg`: of several numbers the one that has most
    values counts the frames.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}  # texts to name to numbers
    for name in names:
        if not is_image(name):
            continue
        stem = Path(name).stem
        moment = _DATED.search(stem) or _PARTED.search(stem)
        number = moment or _DECIMAL.search(stem)
        if number is None:
            pieces = re.split(r"(\d+)", name)
            texts = pieces[::2]
            numbers = pieces[1::2]
        else:
            texts = [name[: number.start()], name[number.end() :]]
            numbers = [f"{_seconds(moment):.9f}" if moment else number[0]]
        groups.setdefault(tuple(texts), {})[name] = numbers
    for texts, numbers_of in groups.items():
        yield from _series_of(texts, numbers_of)


def _series_of(
    texts: Sequence[str], numbers_of: Mapping[str, Sequence[str]]
) -> Iterator[ImageSeries]:
    """The series of names with the same texts between their numbers."""
    if len(texts) == 1 or len(numbers_of) == 1:
        for name in numbers_of:
            yield ImageSeries(name, [0.0], [name])
        return
    values = [set(column) for column in zip(*numbers_of.values(), strict=True)]
    position = max(range(len(values)), key=lambda index: len(values[index]))
    members: dict[str, list[str]] = {}  # pattern to names
    for name, numbers in numbers_of.items():
        pattern = ""
        for index, number in enumerate(numbers):
            pattern += texts[index]
            pattern += "*" if index == position else number
        members.setdefault(pattern + texts[-1], []).append(name)
    if 2 * len(members) > len(numbers_of):  # each number changes from file to file
        position = max(range(len(values)), key=lambda index: max(map(int, values[index])))
        members = {"*" + texts[-1]: [*numbers_of]}
    for pattern, names in members.items():
        frames = sorted((float(numbers_of[name][position]), name) for name in names)
        yield ImageSeries(pattern, [number for number, _ in frames], [name for _, name in frames])


def _seconds(match: re.Match[str]) -> float:
    """Seconds of a date, or of seconds and nanoseconds, in a name."""
    parts = match.groupdict()
    if "date" not in parts:
        return int(parts["seconds"]) + int(parts["nanoseconds"]) / 1e9
    digits = re.sub(r"\D", "", f"{parts['date']}{parts['time']}")
    moment = datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    return moment.timestamp() + float(f"0.{parts['part'] or 0}")
