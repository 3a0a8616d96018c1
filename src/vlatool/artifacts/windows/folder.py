"""Folder of windows: a file of lines and a folder of images per episode, and a manifest.

Published folders have no manifest. Source: reference/future-vla 1.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vlatool.artifacts.lines import LINES_SUFFIX, read_lines
from vlatool.artifacts.tar import INDEX_SUFFIX
from vlatool.artifacts.windows.format import DATA_NAME, IMAGES_NAME, parse_window
from vlatool.errors import DataError
from vlatool.jobs.record import read_valid_record
from vlatool.storage.atomic import write_json
from vlatool.storage.documents import DocumentError, read_json

MANIFEST_NAME = "manifest.json"
FORMAT, VERSION = "vlatool.windows", 1

# Patterns of all files that vlatool writes there; other files are not touched.
OWNED_FILES = (
    f"{DATA_NAME}/episode_*{LINES_SUFFIX}",
    f"{DATA_NAME}/episode_*{INDEX_SUFFIX}",
    f"{IMAGES_NAME}/episode_*/*.png",
    MANIFEST_NAME,
)


Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class WindowManifest:
    """Manifest of a folder of windows.

    Attributes:
        names: Prefixes of the image names.
        cameras: In the order of the images of one frame.
        fps: Frames per second; None if episodes differ or do not record it.
        action_fields: Fields of the source that are concatenated to an action.
        action_names: Names of the values of an action; empty if unknown.
        action_width: Number of values of an action; they are not normalized.
        past_steps: Observed steps, the anchor included.
        future_steps: Actions from the anchor on, and images of the steps after it.
        qa_mode: Kinds of the lines of a frame.
        image_size: (width, height) of the images; None if they keep their size.
        episodes: Number of files of lines.
        frames: Number of frames in all episodes.
        samples: Number of lines in all files.
        pictures: Number of image files.
        untouched: Number of images that were copied unchanged.
    """

    names: tuple[str, ...]
    cameras: tuple[str, ...]
    fps: float | None
    action_fields: tuple[str, ...]
    action_names: tuple[str, ...]
    action_width: Count
    past_steps: Count
    future_steps: Count
    qa_mode: str
    image_size: tuple[int, int] | None
    episodes: Count
    frames: Count
    samples: Count
    pictures: Count
    untouched: Count

    def document(self) -> dict[str, Any]:
        """JSON document of the manifest."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "normalisation": None}


# Values of the published converter. Source: reference/future-vla 1.3
PUBLISHED_CAMERAS, PUBLISHED_STEPS = ("image", "wrist_image"), 16


def write_manifest(folder: Path, manifest: WindowManifest) -> None:
    """Writes the manifest of a folder, its last file."""
    write_json(folder / MANIFEST_NAME, manifest.document())


def read_manifest(folder: Path) -> WindowManifest | None:
    """Manifest of a folder; None if it has none.

    Raises:
        DataError: `data.broken_manifest`: the file is damaged, of another format or version.
    """
    path = folder / MANIFEST_NAME
    try:
        return _manifest(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValidationError, DocumentError, OSError, ValueError) as error:
        reason = _reason(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"{path}: {reason}",
            hint="run the command that wrote the folder again, or copy the folder again",
            code="data.broken_manifest",
            details={"path": str(path)},
        ) from None


def _manifest(tree: Any) -> WindowManifest:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"format is not {FORMAT!r}")
    if tree.get("version") != VERSION:
        raise ValueError(f"has version {tree.get('version')!r}; this vlatool supports {VERSION}")
    return TypeAdapter(WindowManifest).validate_python(tree)


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def is_windows(location: Path) -> bool:
    """True for a folder of windows, or the output of a started run of them."""
    return _has_manifest(location) or _is_unfinished(location) or _is_published(location)


def _has_manifest(location: Path) -> bool:
    try:
        tree = read_json(location / MANIFEST_NAME)
    except (DocumentError, OSError):
        return False
    return isinstance(tree, dict) and tree.get("format") == FORMAT


def _is_unfinished(location: Path) -> bool:
    try:
        record = read_valid_record(location)
    except DataError:
        return False
    return record is not None and set(OWNED_FILES) <= set(record.owned)


def _is_published(location: Path) -> bool:
    """True if the first line of the first file is a window."""
    first = next(iter(lines_files(location)), None)
    if first is None:
        return False
    try:
        return any(parse_window(line) for line in islice(read_lines(first), 1))
    except (ValueError, OSError):
        return False


def lines_files(folder: Path) -> Sequence[Path]:
    """Files of lines of a folder, sorted by name."""
    data = folder / DATA_NAME
    return sorted(data.glob(f"episode_*{LINES_SUFFIX}")) if data.is_dir() else []


def image_folders(root: Path) -> Iterator[Path]:
    """Folders of images, sorted by name."""
    images = root / IMAGES_NAME
    yield from sorted(folder for folder in images.glob("episode_*") if folder.is_dir())
