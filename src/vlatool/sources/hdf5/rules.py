"""Each rule of HDF5 recordings, once: opening, what may be read, layouts found by structure.

Source: formats/hdf5 1. Legend of shapes: F frames, C dimensions of a field.
"""

import json
import math
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError, installed
from vlatool.findings import FindingCodes, error, info, warning
from vlatool.sources.mapping import CameraMapping, RecordingMapping
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import as_native_file

_AGAIN = "record or copy the file again, or exclude the episode with --exclude"
_CHANGE = "change the mapping, or exclude the episode with --exclude"

HDF5 = FindingCodes(
    "hdf5",
    unreadable=error(
        "A file, a group or a dataset is damaged, truncated or was not closed.",
        f"{_AGAIN}, or save what is whole: vlatool repair",
    ),
    unknown_layout=error(
        "The structure is none of robomimic, Isaac Lab, LIBERO and ALOHA.",
        "write a mapping: vlatool inspect FILE --propose mapping.yaml",
    ),
    missing_dataset=error("A dataset or an attribute is missing.", _CHANGE),
    not_numeric=error("A field has no numbers, or images have no pixels.", _CHANGE),
    not_text=error("Instructions of frames are no texts.", _CHANGE),
    length_mismatch=error("Datasets of an episode differ in their number of frames.", _AGAIN),
    empty_episode=error("An episode has no frames.", _AGAIN),
    too_large=error("A field, an image or a chunk is larger than what is read at once.", _AGAIN),
    missing_filter=error(
        "A dataset is compressed with a filter that is not installed.",
        "install the filter (package hdf5plugin), or rewrite the file with gzip (h5repack)",
    ),
    data_outside=error("A link or a dataset leads out of the file.", "copy the data into the file"),
    not_counted=warning(
        "num_samples differs from the number of frames.", "none if the data is right"
    ),
    ignored=info("Datasets that are neither images nor one row per frame."),
)

Kind = Literal["pixels", "encoded", "numbers", "other"]

SUFFIXES = (".hdf5", ".h5", ".hdf")
_LARGEST_FIELD = 2**28  # bytes
_LARGEST_FIELDS = 2**30  # of an episode
_LARGEST_CHUNK = 2**29
_MOST_PIXELS = 2**26
CACHE = 2**27  # bytes of decoded chunks of a camera
_MAX_DEPTH = 16
_MAX_LISTED = 6
_STARTS = (b"\xff\xd8\xff", b"\x89PNG")
# Observations that a robot measures of itself; others, such as poses of objects, are not observed.
# Groups and datasets with a row per frame; others may have any length.
_PER_FRAME = ("obs/", "observations/", "states", "rewards", "dones")
_MEASURED = re.compile(r"eef|ee_|gripper|joint|robot\d|qpos|qvel")


@contextmanager
def readable(path: Path, place: str = "") -> Generator[None]:
    """Turns errors of the library into that of an unreadable file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError) as error:
        raise HDF5.error("unreadable", path, place, f"cannot be read: {error}") from error


@contextmanager
def opened(path: Path, cache: int = 2**20) -> Iterator[Any]:
    """The file; a remote one is read in blocks, each requested once in a process."""
    h5py = installed("h5py")
    with readable(path):
        file = h5py.File(as_native_file(path), "r", rdcc_nbytes=cache)
    with file:
        yield file


@dataclass(frozen=True)
class FileLayout:
    """Structure of a file."""

    name: str
    groups: tuple[str, ...]  # of the episodes, in natural order
    actions: str = ""  # dataset of the actions in an episode; empty: a mapping names it


def layout_of(file: Any, path: Path, mapping: RecordingMapping | None) -> FileLayout:
    """The layout of a mapping, or the one that the structure of a file shows."""
    with readable(path):
        if mapping is not None:
            groups = list(_matching(file, PurePosixPath(mapping.episodes).parts))
            return FileLayout("mapping", tuple(groups))
        data = _member(file, "data")
        demos = [] if data is None else sorted(_groups(data), key=natural_key)
        if data is not None and demos and "actions" in data[demos[0]]:
            groups = [f"data/{name}" for name in demos]
            name = _kind_of(data[demos[0]])
            return FileLayout(name, tuple(groups), "actions")
        if "action" in file and _member(file, "observations") is not None:
            return FileLayout("ALOHA", ("/",), "action")
    raise HDF5.error("unknown_layout", path, f"unknown layout: {_names(file)}")


def _kind_of(demo: Any) -> str:
    states, images = _member(demo, "states"), _member(demo, "obs/agentview_rgb")
    if states is not None and hasattr(states, "keys"):
        return "Isaac Lab"
    return "LIBERO" if images is not None else "robomimic"


def _names(file: Any) -> str:
    names = [repr(name) for name in list(file)]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"its root has {', '.join(names[:_MAX_LISTED]) or 'nothing'}{more}"


def _groups(group: Any) -> list[str]:
    return [name for name in group if hasattr(_member(group, name), "keys")]


def _matching(group: Any, parts: tuple[str, ...], at: str = "") -> Iterator[str]:
    """Paths of the groups that a pattern names; `*` stands for one name."""
    parts = tuple(part for part in parts if part != "/")
    if not parts:
        yield at or "/"
        return
    for name in sorted(_groups(group), key=natural_key):
        if PurePosixPath(name).match(parts[0]):
            yield from _matching(group[name], parts[1:], f"{at}/{name}".lstrip("/"))


def _member(group: Any, path: str) -> Any:
    """A group or dataset below a group; None if there is none, or only a link to one."""
    h5py = installed("h5py")
    for name in path.strip("/").split("/"):
        links = group.id.links if isinstance(group, h5py.Group) else None
        key = name.encode("utf-8", "surrogateescape")
        if not key or links is None or not links.exists(key):
            return None
        if links.get_info(key).type != h5py.h5l.TYPE_HARD:
            return None
        group = group[name]
    return group


def datasets_of(group: Any, at: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, dataset) below a group, in natural order; links are not followed."""
    for name in sorted(group, key=natural_key):
        member = _member(group, name)
        if member is None or depth >= _MAX_DEPTH:
            continue
        if hasattr(member, "keys"):
            yield from datasets_of(member, f"{at}{name}/", depth + 1)
        else:
            yield f"{at}{name}", member


def kind_of(dataset: Any) -> Kind:
    """Content of the rows of a dataset, by type, shape and first bytes."""
    shape, dtype = dataset.shape or (), dataset.dtype
    if dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3:
        return "pixels"
    is_bytes = (len(shape) == 2 and dtype == np.uint8) or (len(shape) == 1 and dtype.kind in "SVO")
    if is_bytes and len(dataset):
        check_dataset(dataset, Path(dataset.file.filename or "file"))
        if row_bytes(dataset, 0).startswith(_STARTS):
            return "encoded"
    return "numbers" if shape and dtype.kind in "fiub" else "other"


def row_bytes(dataset: Any, index: int) -> bytes:
    """The bytes of a row without the zeros that fill it up."""
    row = dataset[index]
    data = row.tobytes() if hasattr(row, "tobytes") else bytes(row)
    return data.rstrip(b"\0")


def check_dataset(dataset: Any, path: Path) -> None:
    """Raises DataError if reading leaves the file, needs a missing filter or too much memory."""
    h5py = installed("h5py")
    name = dataset.name
    if dataset.external or dataset.is_virtual:
        raise HDF5.error("data_outside", path, name, "its values are in another file", field=name)
    plist = dataset.id.get_create_plist()
    for number in range(plist.get_nfilters()):
        code, _, _, label = plist.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            known = label.decode(errors="replace") or code
            raise HDF5.error("missing_filter", path, name, f"needs the filter {known}", field=name)
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if chunk > _LARGEST_CHUNK:
        raise HDF5.error("too_large", path, name, f"has chunks of {chunk:,} bytes", field=name)


def _by_structure(actions: str, datasets: Mapping[str, Any]) -> RecordingMapping:
    """Mapping of an episode whose actions are `actions`, and whose other datasets have as many rows
    or are left out.
    """
    commands = datasets.get(actions)
    count = len(commands) if commands is not None and commands.shape else 0
    cameras: dict[str, CameraMapping] = {}
    fields: dict[str, str] = {actions: actions}
    for path, dataset in datasets.items():
        if path.startswith(("next_obs/", "initial_state/")):
            continue
        kind = kind_of(dataset)
        if kind in ("pixels", "encoded"):
            cameras[path.rpartition("/")[2]] = CameraMapping(path=path)
        elif kind == "numbers" and (len(dataset) == count or path.startswith(_PER_FRAME)):
            fields[path.replace("/", ".")] = path
    observed = [
        name
        for name, path in fields.items()
        if path.startswith(("obs/", "observations/")) and _MEASURED.search(path)
    ]
    return RecordingMapping(
        cameras=cameras, fields=fields, action_fields=[actions], proprioception_fields=observed
    )


@dataclass
class Contents:
    """Datasets that a mapping names in an episode."""

    num_frames: int
    # camera to (path of its dataset in the file, kind, (height, width))
    images: dict[str, tuple[str, Kind, tuple[int, int]]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)  # datasets [F, ...]
    others: list[str] = field(default_factory=list)  # datasets that it does not name


def contents_of(
    group: Any, mapping: RecordingMapping, path: Path, listed: Mapping[str, Any]
) -> Contents:
    """Checks every dataset of a mapping without reading its rows; `listed`: those of the group.

    Raises:
        DataError: One is missing, of another length, too large or outside of the file.
    """
    place = group.name

    def dataset_of(reference: str) -> Any:
        known = listed.get(reference)
        return dataset_at(group, reference, path) if known is None else known

    datasets = {name: dataset_of(reference) for name, reference in mapping.fields.items()}
    files = {name: camera.path for name, camera in mapping.cameras.items() if camera.path}
    images = {name: dataset_of(reference) for name, reference in files.items()}
    used = {*mapping.fields.values(), *files.values(), mapping.instruction}
    used |= {*mapping.language.values()}
    for name, dataset in {**datasets, **images}.items():
        if not dataset.shape:
            raise HDF5.error("not_numeric", path, dataset.name, "is a single value", field=name)
        check_dataset(dataset, path)
    lengths = {name: len(dataset) for name, dataset in {**datasets, **images}.items()}
    if not lengths:
        raise HDF5.error("missing_dataset", path, place, "the mapping names no dataset")
    count = lengths.get(next(iter(mapping.action_fields), ""), next(iter(lengths.values())))
    for name, length in lengths.items():
        if length != count:
            reason = f"{name} has {length} rows, the others {count}"
            raise HDF5.error("length_mismatch", path, place, reason, field=name)
    if not count:
        raise HDF5.error("empty_episode", path, place, "has no frames")
    _check_fields(datasets, path)
    sizes = {name: _image_facts(name, dataset, path) for name, dataset in images.items()}
    return Contents(count, sizes, datasets, [name for name in listed if name not in used])


def _check_fields(datasets: Mapping[str, Any], path: Path) -> None:
    total = 0
    for name, dataset in datasets.items():
        if dataset.dtype.kind not in "fiub":
            raise HDF5.error("not_numeric", path, dataset.name, f"is {dataset.dtype}", field=name)
        total += dataset.nbytes
        if dataset.nbytes > _LARGEST_FIELD or total > _LARGEST_FIELDS:
            reason = f"{dataset.nbytes:,} bytes, {total:,} with the fields before it"
            raise HDF5.error("too_large", path, dataset.name, reason, field=name)


def _image_facts(name: str, dataset: Any, path: Path) -> tuple[str, Kind, tuple[int, int]]:
    from vlatool.artifacts.images import image_info

    kind = kind_of(dataset)
    if kind == "pixels":
        size = (dataset.shape[1], dataset.shape[2])
    elif kind == "encoded":
        try:
            info = image_info(row_bytes(dataset, 0))
        except ValueError as error:
            raise HDF5.error("not_numeric", path, dataset.name, str(error), camera=name) from error
        size = (info.height, info.width)
    else:
        shape = f"{dataset.dtype} {list(dataset.shape)}"
        raise HDF5.error("not_numeric", path, dataset.name, f"{shape} is no images", camera=name)
    if math.prod(size) > _MOST_PIXELS or not math.prod(size):
        reason = f"images of {size[1]} x {size[0]} pixels"
        raise HDF5.error("too_large", path, dataset.name, reason, camera=name)
    return dataset.name, kind, size


def dataset_at(group: Any, reference: str, path: Path) -> Any:
    """The dataset of a reference; DataError if there is none."""
    root = group.file if reference.startswith("/") else group
    member = _member(root, reference)
    if member is None or hasattr(member, "keys"):
        link = "is a link, which is not followed" if reference in root else "is missing"
        code = "data_outside" if reference in root and member is None else "missing_dataset"
        raise HDF5.error(code, path, f"{group.name}/{reference}".lstrip("/"), link, field=reference)
    return member


def value_at(group: Any, reference: str, path: Path) -> Any:
    """The single value of a reference: an attribute (`PATH@NAME`), or the first of a dataset."""
    place, has_name, name = reference.rpartition("@")
    if not has_name:
        dataset = dataset_at(group, reference, path)
        check_dataset(dataset, path)
        value = dataset[()] if not dataset.shape else dataset[0]
    else:
        root = group.file if place.startswith("/") else group
        owner = _member(root, place) if place.strip("/") else root
        if owner is None or name not in owner.attrs:
            raise HDF5.error("missing_dataset", path, reference, "is missing", field=reference)
        value = owner.attrs[name]
    value = value.item() if hasattr(value, "item") and np.size(value) == 1 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def texts_at(group: Any, reference: str, path: Path, num_frames: int) -> list[str]:
    """The text of each frame, or the only one."""
    if "@" in reference:
        return [str(value_at(group, reference, path))]
    dataset = dataset_at(group, reference, path)
    name, count = dataset.name, dataset.size
    if dataset.dtype.kind not in "SO":
        raise HDF5.error("not_text", path, name, f"is {dataset.dtype}, not text")
    if count not in (1, num_frames):
        reason = f"has {count} texts, the episode {num_frames} frames"
        raise HDF5.error("length_mismatch", path, name, reason)
    check_dataset(dataset, path)
    if dataset.nbytes > _LARGEST_FIELD:
        raise HDF5.error("too_large", path, name, f"{dataset.nbytes:,} bytes")
    with readable(path, name):
        rows = np.asarray(dataset[()]).reshape(-1).tolist()
    return [row.decode(errors="replace") if isinstance(row, bytes) else str(row) for row in rows]


def columns(dataset: Any, path: Path) -> Array:
    """The rows of a field [F, C]."""
    with readable(path, dataset.name):
        values: Array = dataset[()]
    return values.reshape(len(values), -1)


def stored_facts(file: Any) -> tuple[float | None, str, str]:
    """(frames per second, instruction, task) of the attributes of robomimic that are there."""
    data = _member(file, "data")
    if data is None:
        return None, "", ""
    env, problem = (_document(data, name) for name in ("env_args", "problem_info"))
    fps = _number(_section(env, "env_kwargs").get("control_freq"))
    sim = _section(env, "sim_args")
    period = _number(sim.get("dt")) * _number(sim.get("decimation"))
    instruction = str(problem.get("language_instruction") or "").strip('"')
    return fps or (1.0 / period if period else None), instruction, str(env.get("env_name") or "")


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section: Any = document.get(name)
    return section if isinstance(section, dict) else {}


def _number(value: Any) -> float:
    """A positive finite number; 0 for anything else."""
    is_number = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return float(value) if is_number else 0.0


def _document(group: Any, name: str) -> dict[str, Any]:
    try:
        document = json.loads(group.attrs.get(name) or "{}")
    except (ValueError, TypeError, OSError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def masked(file: Any, name: str, path: Path) -> frozenset[str]:
    """Names of the episodes in the list `mask/NAME`."""
    mask = _member(file, "mask")
    known = [] if mask is None else list(mask)
    if name not in known:
        raise DataError.at(
            path,
            f"has no mask {name!r}",
            hint=f"choose from: {', '.join(known)}" if known else "leave --mask out",
            code="data.unknown_mask",
            known=known,
        )
    with readable(path, f"mask/{name}"):
        rows = dataset_at(mask, name, path)[()]
    return frozenset(
        row.decode(errors="replace") if isinstance(row, bytes) else str(row) for row in rows
    )


@contextmanager
def episode_at(
    path: Path, name: str, actions: str, mapping: RecordingMapping | None
) -> Iterator[tuple[Any, RecordingMapping, Contents]]:
    """The group of an episode, its mapping, and what that names."""
    with opened(path) as file, readable(path, name):
        group = file if name == "/" else _member(file, name)
        if group is None:
            raise HDF5.error("missing_dataset", path, name, "is missing")
        listed = dict(datasets_of(group))
        parts = mapping or _by_structure(actions, listed)
        yield group, parts, contents_of(group, parts, path, listed)


def proposed(file: Any) -> tuple[RecordingMapping, dict[str, str]]:
    """A mapping of any file, and what to check about its keys.

    The episodes are the groups of equal names but for a number; the fields are the datasets of the
    first one with the most frequent number of rows.
    """
    pattern = _episode_pattern(file)
    group = file if pattern == "/" else file[next(_matching(file, PurePosixPath(pattern).parts))]
    listed = [(path, dataset, kind_of(dataset)) for path, dataset in datasets_of(group)]
    texts = [path for path, data, kind in listed if kind == "other" and data.dtype.kind in "SO"]
    lengths = [len(dataset) for _, dataset, kind in listed if kind != "other"]
    count = max(lengths, key=lengths.count, default=0)
    notes = {
        "episodes": "each such group is an episode? / : the file is one",
        "fps": "PATH@NAME of the frames per second, or give --fps",
        "instruction": "PATH or PATH@NAME of the sentence, or give --instruction",
        "language": f"KIND: PATH of a text, or of one per frame; texts here: {texts}",
        "success": "PATH@NAME of the success flag, if there is one",
        "action_fields": "which fields are commands?",
        "proprioception_fields": "which fields does the robot measure of itself?",
    }
    cameras: dict[str, CameraMapping] = {}
    fields: dict[str, str] = {}
    for path, dataset, kind in listed:
        shape = f"{dataset.dtype} {list(dataset.shape)}"
        if kind == "other" or len(dataset) != count:
            notes[f"fields.{path}"] = shape
        elif kind == "numbers":
            fields[path.replace("/", ".")] = path
            notes[f"fields.{path.replace('/', '.')}"] = shape
        else:
            name = path.rpartition("/")[2]
            cameras[name] = CameraMapping(path=path)
            notes[f"cameras.{name}"] = f"{shape}; colors swapped? then bgr: true"
    actions = [name for name in fields if "action" in name.rpartition(".")[2]]
    observed = [name for name in fields if name not in actions and _MEASURED.search(name)]
    mapping = RecordingMapping(
        episodes=pattern,
        cameras=cameras,
        fields=fields,
        action_fields=actions,
        proprioception_fields=observed,
    )
    return mapping, notes


def _episode_pattern(file: Any) -> str:
    """The first group below the root with members that are equal but for a number; `/` if none."""
    for at in ("", *(f"{name}/" for name in _groups(file))):
        names = _groups(file[at] if at else file)
        stems = {name.rstrip("0123456789") for name in names}
        if len(names) > 0 and len(stems) == 1 and names[0] != (stem := stems.pop()):
            return f"{at}{stem}*"
    return "/"
