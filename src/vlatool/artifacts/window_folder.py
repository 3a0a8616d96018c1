"""A folder of windows: a file of lines and a folder of pictures per episode, and what they are.

Published folders have no manifest. Source: reference/future-vla 1.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vlatool.artifacts.lines import LINES_SUFFIX, read_lines
from vlatool.artifacts.shard import INDEX_SUFFIX
from vlatool.artifacts.windows import DATA_NAME, IMAGES_NAME, parse_window
from vlatool.errors import DataError
from vlatool.jobs.record import read_valid_record
from vlatool.storage.atomic import write_json
from vlatool.storage.documents import DocumentError, read_json

MANIFEST_NAME = "manifest.json"
FORMAT, VERSION = "vlatool.windows", 1

# Patterns of everything that is written there; what others put beside it is left alone.
OWNED_FILES = (
    f"{DATA_NAME}/episode_*{LINES_SUFFIX}",
    f"{DATA_NAME}/episode_*{INDEX_SUFFIX}",
    f"{IMAGES_NAME}/episode_*/*.png",
    MANIFEST_NAME,
)


Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class WindowManifest:
    """What a folder of windows holds.

    Attributes:
        names: What the names of its pictures begin with.
        cameras: In the order in which they stand side by side in a window.
        fps: Frames per second; None where episodes differ or do not say.
        action_fields: Fields of the recording that an action is made of.
        action_names: What the values of an action are called; empty where that is not known.
        action_width: Values of an action, not normalised.
        past_steps: Steps that are seen, the present one included.
        future_steps: Steps that are done, and seen after that.
        qa_mode: Which lines there are of a frame.
        image_size: (width, height) of the pictures; None where they have their own.
        episodes: Files of lines.
        frames: In all episodes.
        samples: Lines in all files.
        pictures: Files of pictures.
        untouched: Those of them that are stored as they were recorded.
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
        """As it is written."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "normalisation": None}


# As the published converter makes them. Source: reference/future-vla 1.3
PUBLISHED_CAMERAS, PUBLISHED_STEPS = ("image", "wrist_image"), 16


def write_manifest(folder: Path, manifest: WindowManifest) -> None:
    """Says what a folder holds; written last."""
    write_json(folder / MANIFEST_NAME, manifest.document())


def read_manifest(folder: Path) -> WindowManifest | None:
    """What a folder says of itself; None where it does not.

    Raises:
        DataError: `data.broken_manifest`: the file is damaged, another's, or of a later version.
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
        raise ValueError(f"has not the format {FORMAT!r}")
    if tree.get("version") != VERSION:
        raise ValueError(f"has version {tree.get('version')!r}; this vlatool knows {VERSION}")
    return TypeAdapter(WindowManifest).validate_python(tree)


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def is_windows(location: Path) -> bool:
    """Whether a folder of windows is here, or a run that writes one has begun."""
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
    """Whether the first line of the first file is a window."""
    first = next(iter(lines_files(location)), None)
    if first is None:
        return False
    try:
        return any(parse_window(line) for line in islice(read_lines(first), 1))
    except (ValueError, OSError):
        return False


def lines_files(folder: Path) -> Sequence[Path]:
    """The files of lines of a folder, by name."""
    data = folder / DATA_NAME
    return sorted(data.glob(f"episode_*{LINES_SUFFIX}")) if data.is_dir() else []


def image_folders(root: Path) -> Iterator[Path]:
    """The folders of pictures, by name."""
    images = root / IMAGES_NAME
    yield from sorted(folder for folder in images.glob("episode_*") if folder.is_dir())
