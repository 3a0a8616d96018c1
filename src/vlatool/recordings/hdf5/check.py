"""Reads HDF5 files safely, with the findings of the format; layouts are in `layout.py`.

Only `member_at` follows links, and it stays in the file. `check_dataset` precedes each read: it
refuses data that take more memory than allowed. Source: formats/hdf5 1.

Shapes: F frames, C dimensions of a field.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from vlatool.episode import Array
from vlatool.errors import DataError, installed
from vlatool.findings import FindingCodes, error, warning
from vlatool.media import limits
from vlatool.recordings.base import first_middle_last
from vlatool.recordings.inventory import (
    RIFF_START,
    Stored,
    encoded_thing,
    image_size,
    is_encoded,
)
from vlatool.recordings.language import is_instruction, sentences_in
from vlatool.recordings.mapping import matching, nearest
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import as_native_file, is_remote

_EXCLUDE = "leave the episode out with --exclude"
_AGAIN = f"the file is cut off or damaged: copy it again, or {_EXCLUDE}"
_CHANGE = f"change the mapping, or {_EXCLUDE}"

HDF5 = FindingCodes(
    "hdf5",
    unreadable=error(
        "A file, a group or a dataset is damaged, cut off or was not closed.",
        f"{_AGAIN}; if the recorder was killed, `h5clear -s --increment` and `h5repack` on a copy "
        "may help",
    ),
    unknown_layout=error(
        "The file has none of the known layouts.",
        "describe it in a mapping: vlatool inspect SOURCE --propose mapping.yaml writes one",
    ),
    missing_dataset=error("A dataset or an attribute is missing.", _CHANGE),
    not_numeric=error("A field has no numbers, or a camera has no images.", _CHANGE),
    not_text=error("A dataset of instructions holds no texts.", _CHANGE),
    length_mismatch=error(
        "The datasets of an episode have different numbers of frames.",
        "leave the dataset out with a mapping (vlatool inspect SOURCE --propose mapping.yaml), "
        f"or {_EXCLUDE}",
    ),
    empty_episode=error("An episode has no frames.", _EXCLUDE),
    too_large=error(
        "A field, an image or a chunk is too large to be read at once.",
        "leave it out with a mapping, or rewrite it in smaller chunks (h5repack)",
    ),
    missing_filter=error(
        "A dataset is compressed with a filter that is not installed.",
        "pip install hdf5plugin, or rewrite the file with gzip (h5repack)",
    ),
    data_outside=error("A link or a dataset leads out of the file.", "copy the data into the file"),
    never_written=error(
        "Some rows of a dataset were never written; they would be read as zeros.",
        f"leave the dataset out with a mapping, or {_EXCLUDE}",
    ),
    not_counted=warning(
        "The attribute num_samples differs from the number of frames.",
        "nothing, if the data are right: vlatool does not use it",
    ),
)

SUFFIXES = (".hdf5", ".h5", ".hdf")
_DEFLATE = 1  # number of the filter gzip
_MOST_DEFLATED = 1032  # bytes that one byte of gzip inflates to
_BLOCK = 2**24  # bytes
_MOST_PIXELS = 2**26
CACHE = 2**27  # bytes of decoded chunks of a camera
_MAX_DEPTH = 16
_FIRST_ROWS = 4  # of which one has an image, if rows have images
_MOST_LINKS = 8  # that lead to a dataset within the file
_LONGEST_PATH = 1000  # groups of a path, including groups in its links
_NOT_FOLLOWED = (
    "damaged, a link out of the file or to nothing, a group that is linked twice, or more than 16 "
    "groups deep; not followed"
)
_SAMPLED = 3  # rows that show what a dataset holds
_LONGEST_TEXT = 1000  # characters of an attribute that a person wrote


# What the library raises for damage.
BROKEN = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)


@contextmanager
def readable(path: Path, place: str = "") -> Generator[None]:
    """Turns errors of the library into the error for an unreadable file."""
    try:
        yield
    except DataError:
        raise
    except BROKEN as error:
        raise HDF5.error("unreadable", path, place, f"cannot be read: {error}") from error


@contextmanager
def opened(path: Path, cache: int = 2**20) -> Iterator[Any]:
    """The file; a remote one is read in blocks, each requested once in a process."""
    h5py = installed("h5py")
    if not is_remote(path) and path.exists() and not path.is_file():
        raise HDF5.error("unreadable", path, "is a pipe, a device or a folder, no file")
    with readable(path):
        file = h5py.File(as_native_file(path), "r", rdcc_nbytes=cache)
    with file:
        yield file


def address_of(group: Any) -> int:
    """Place of a group in its file, the same by whatever link it is found."""
    return installed("h5py").h5o.get_info(group.id).addr


def member_at(group: Any, path: str) -> Any:
    """A group or dataset below a group; None if there is none, or a link leads out of the file."""
    h5py = installed("h5py")
    names = [name for name in reversed(path.split("/")) if name]  # the next one last
    links = 0
    steps = 0
    while names:
        name = names.pop()
        steps += 1
        members = group.id.links if isinstance(group, h5py.Group) else None
        key = name.encode("utf-8", "surrogateescape")
        if members is None or not members.exists(key) or steps > _LONGEST_PATH:
            return None
        kind = members.get_info(key).type
        if kind == h5py.h5l.TYPE_SOFT and links < _MOST_LINKS:
            links += 1
            place = group.get(name, getlink=True).path
            names += [part for part in reversed(place.split("/")) if part not in ("", ".")]
            group = group.file if place.startswith("/") else group
        elif kind == h5py.h5l.TYPE_HARD:
            group = group[name]
        else:
            return None
    return group


def datasets_of(
    group: Any, at: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields (path, dataset) below a group, in natural order.

    The dataset is None for a link that is not followed, and for a group that is damaged, too deep,
    or was entered before.
    """
    if seen is None:
        seen = {address_of(group)}
    for name in sorted(group, key=natural_key):
        member = None
        with suppress(*BROKEN):
            member = member_at(group, name)
        is_group = hasattr(member, "keys")
        if member is None or (is_group and (depth >= _MAX_DEPTH or address_of(member) in seen)):
            yield f"{at}{name}", None
        elif is_group:
            seen.add(address_of(member))
            yield from datasets_of(member, f"{at}{name}/", depth + 1, seen)
        else:
            yield f"{at}{name}", member


# What an episode stores


def things_of(group: Any, path: Path) -> list[Stored]:
    """All that an episode stores: datasets below its group, and texts in attributes of it."""
    if not hasattr(group, "keys"):
        return [thing_of(".", group, path)]
    things: list[Stored] = []
    for name, dataset in datasets_of(group):
        try:
            with readable(path, name):
                things.append(thing_of(name, dataset, path))
        except DataError as error:
            if error.details.get("finding") not in ("unreadable", "too_large"):
                raise
            things.append(Stored(name, "other", note=error.message, role="left_out"))
    for name, value in attributes_of(group).items():
        things.append(_attribute_thing(name, value))
    return things


def thing_of(name: str, dataset: Any, path: Path) -> Stored:
    """What a dataset stores, by its type, its shape and at most its first row."""
    h5py = installed("h5py")
    if dataset is None:
        return Stored(name, "other", note=_NOT_FOLLOWED, role="left_out")
    if not isinstance(dataset, h5py.Dataset):
        return Stored(name, "other", note="a type, no dataset")
    shape = dataset.shape
    dtype = dataset.dtype
    if shape is None or not dataset.size:
        return Stored(name, "other", rows=0, note="it is empty")
    if dtype.names:
        return Stored(name, "other", note=f"a table with the columns {', '.join(dtype.names)}")
    is_bytes = dtype.kind in "SV" or h5py.check_vlen_dtype(dtype) == np.uint8
    if shape and (is_bytes or (dtype == np.uint8 and len(shape) == 2)):
        check_dataset(dataset, path)
        for row in range(min(shape[0], _FIRST_ROWS)):
            data = row_bytes(dataset, row)
            if is_encoded(data):
                return encoded_thing(name, data, shape[0])
    if h5py.check_string_dtype(dtype) is not None:
        return Stored(name, "text", rows=shape[0] if shape else None)
    if dtype.kind not in "fiub":
        return Stored(name, "other", note=f"values of {dtype}")
    if not shape:
        return Stored(name, "other", note="a single value for the whole episode")

    def look() -> Array:
        check_dataset(dataset, path)
        rows = first_middle_last(shape[0])  # at most _SAMPLED
        return np.asarray(dataset[rows])  # a chunk is inflated once

    return Stored(name, "array", shape[1:], dtype.name, shape[0], look=look)


def attributes_of(group: Any) -> dict[str, Any]:
    """Reference to the value of the attributes of a group, and of the root of its file."""
    owners = {"@": group}
    if group.name != "/":
        owners["/@"] = group.file
    values: dict[str, Any] = {}
    for prefix, owner in owners.items():
        for name in owner.attrs:
            with suppress(*BROKEN):  # of a type that NumPy lacks, or damaged
                values[f"{prefix}{name}"] = _plain(owner.attrs[name])
    return values | sentences_in(values)


def _attribute_thing(name: str, value: Any) -> Stored:
    """Describes an attribute; it has a role if the reader uses it without a mapping."""
    key = name.rpartition("@")[2]
    if isinstance(value, str) and is_instruction(key.rpartition(".")[2], value) and "." in key:
        return Stored(name, "text", role="language")
    if key == "success":
        return Stored(name, "other", role="success")
    if key in ("num_samples", "fps", "hz", "control_freq", "dt"):
        return Stored(name, "other", role="time")
    is_document = isinstance(value, str) and value[:1] in ("{", "[", "<")
    if isinstance(value, str) and not is_document and len(value) <= _LONGEST_TEXT:
        return Stored(name, "text")
    if isinstance(value, np.ndarray) and value.dtype.kind in "SUO" and value.size:
        return Stored(name, "text", note="a list of texts")
    return Stored(name, "other", note="an attribute")


def _plain(value: Any) -> Any:
    """A value of NumPy with one number or text as one of Python."""
    if hasattr(value, "item") and np.size(value) == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


# What may be read


def check_dataset(dataset: Any, path: Path) -> None:
    """Raises DataError if reading leaves the file, needs a missing filter or too much memory."""
    h5py = installed("h5py")
    name = dataset.name
    if dataset.external or dataset.is_virtual:
        raise HDF5.error("data_outside", path, name, "its values are in another file", field=name)
    plist = dataset.id.get_create_plist()
    deflations = 0
    for number in range(plist.get_nfilters()):
        code, _, _, label = plist.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            known = label.decode(errors="replace") or code
            raise HDF5.error("missing_filter", path, name, f"needs the filter {known}", field=name)
        deflations += code == _DEFLATE
    row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    limits.check_bytes(HDF5, path, name, max(_SAMPLED * row, chunk))
    most = limits.most_bytes() // _MOST_DEFLATED
    if deflations and dataset.id.get_storage_size() > most:
        places: list[tuple[int, ...]] = []

        def keep_large(chunk: Any) -> None:
            if chunk.size > most:
                places.append(chunk.chunk_offset)

        dataset.id.chunk_iter(keep_large)
        _check_inflated(path, name, tuple(places), chunk * deflations)


@lru_cache(maxsize=1024)
def _check_inflated(
    path: Path, name: str, places: tuple[tuple[int, ...], ...], declared: int
) -> None:
    """Raises DataError for a chunk of gzip that inflates to more than is declared.

    The library would take the memory.
    """
    with opened(path) as file, readable(path, name):
        for place in places:
            data = file[name].id.read_direct_chunk(place)[1]
            stream = zlib_ng.decompressobj()
            size = 0
            while data and not stream.eof and size <= declared:
                size += len(stream.decompress(data, _BLOCK))
                data = stream.unconsumed_tail
            if size > declared:
                reason = f"a chunk inflates to more than the {declared:,} bytes that it declares"
                raise HDF5.error("unreadable", path, name, reason, field=name)


def check_written(dataset: Any, path: Path) -> None:
    """Raises DataError if rows of a dataset were never written, and would be read as zeros."""
    if not dataset.size or dataset.external or dataset.is_virtual:
        return
    if dataset.chunks is None:
        is_whole = dataset.id.get_storage_size() > 0
    else:
        chunks = 1
        for length, side in zip(dataset.shape, dataset.chunks, strict=True):
            chunks *= math.ceil(length / side)
        is_whole = dataset.id.get_num_chunks() >= chunks
    if not is_whole:
        reason = f"some of its {len(dataset):,} rows were never written"
        raise HDF5.error("never_written", path, dataset.name, reason, field=dataset.name)


def image_size_of(thing: Stored, dataset: Any, path: Path) -> tuple[int, int]:
    """(height, width) of the images of a dataset; DataError if they are too large or none."""
    height, width = image_size(thing.shape) if thing.kind == "array" else thing.shape[:2]
    if not 0 < height * width <= _MOST_PIXELS:
        code = "too_large" if height * width else "not_numeric"
        reason = f"has images of {width} x {height} pixels"
        raise HDF5.error(code, path, dataset.name, reason, field=dataset.name)
    return height, width


# What references name


def dataset_at(group: Any, reference: str, path: Path) -> Any:
    """The dataset of a reference; DataError if there is none, or several fit it."""
    is_dataset = not hasattr(group, "keys")
    if reference == "." and is_dataset:
        return group
    root = group.file if reference.startswith("/") or is_dataset else group
    place = f"{root.name}/{reference}".replace("//", "/").lstrip("/")
    member = member_at(root, reference)
    if hasattr(member, "shape"):
        return member
    if member is None and reference in root:
        link = root.get(reference, getlink=True)
        if link is not None and type(link).__name__ != "HardLink":
            reason = "is a link, which is not followed"
            raise HDF5.error("data_outside", path, place, reason, field=reference)
    names = [name for name, dataset in datasets_of(root) if hasattr(dataset, "shape")]
    try:
        fitting = matching(reference.strip("/"), names)
    except ValueError as error:
        raise HDF5.error("missing_dataset", path, place, str(error), field=reference) from error
    if fitting is not None:
        return member_at(root, fitting)
    state = "is a group, not a dataset" if member is not None else "is missing"
    reason = f"{state}; {nearest(reference.strip('/'), names)}"
    raise HDF5.error("missing_dataset", path, place, reason, field=reference)


def value_at(group: Any, reference: str, path: Path) -> Any:
    """The single value of a reference: an attribute (`PATH@NAME`), or the last of a dataset."""
    place, has_name, name = reference.rpartition("@")
    if not has_name:
        dataset = dataset_at(group, reference, path)
        check_dataset(dataset, path)
        with readable(path, reference):
            return _plain(dataset[-1] if dataset.shape else dataset[()])
    owner: Any = group.file if place.startswith("/") else group
    if place.strip("/"):
        owner = member_at(owner, place)
    if owner is not None and name not in owner.attrs:
        sentence = sentences_in(attributes_of(owner)).get(f"@{name}")
        if sentence is not None:
            return sentence
    if owner is None or name not in owner.attrs:
        reason = f"is missing; {nearest(name, [] if owner is None else [*owner.attrs])}"
        raise HDF5.error("missing_dataset", path, reference, reason, field=reference)
    with readable(path, reference):
        return _plain(owner.attrs[name])


def texts_at(group: Any, reference: str, path: Path, num_frames: int) -> list[str]:
    """The text of each frame, or the only one; of a list of texts the first."""
    if "@" in reference:
        return [str(value_at(group, reference, path))]
    dataset = dataset_at(group, reference, path)
    name = dataset.name
    count = dataset.size
    if dataset.dtype.kind not in "SO":
        raise HDF5.error("not_text", path, name, f"is {dataset.dtype}, not text")
    if count != 1 and not num_frames <= count <= num_frames + 1:
        reason = f"has {count} texts, but the episode has {num_frames} frames"
        raise HDF5.error("length_mismatch", path, name, reason)
    if not count:
        raise HDF5.error("empty_episode", path, name, "has no rows", field=name)
    return texts_of(dataset, path)[:num_frames]


def texts_of(dataset: Any, path: Path) -> list[str]:
    """The rows of a dataset of texts; DataError if they are too large.

    Rows of any length may all be the same bytes of the file: they are read in blocks.
    """
    name = dataset.name
    check_dataset(dataset, path)
    limits.check_bytes(HDF5, path, name, dataset.nbytes)
    if not dataset.shape:
        rows = [dataset[()]]
    else:
        longest = max(1, path.stat().st_size)
        step = max(1, min(len(dataset), limits.most_bytes() // (4 * longest)))
        rows = list[Any]()
        size = 0
        for start in range(0, len(dataset), step):
            with readable(path, name):
                block = np.asarray(dataset[start : start + step]).reshape(-1).tolist()
            size += sum(len(row) for row in block if isinstance(row, str | bytes))
            limits.check_bytes(HDF5, path, name, size)
            rows += block
    return [str(_plain(row)) for row in rows]


def columns(dataset: Any, path: Path, rows: slice = slice(None)) -> Array:
    """Rows of a field [F, C]; DataError if they are no numbers, too large or never written."""
    name = dataset.name
    is_number = dataset.dtype.kind in "fiub"
    if not is_number or not dataset.shape:
        what = "a single value" if is_number else str(dataset.dtype)
        raise HDF5.error("not_numeric", path, name, f"is {what}", field=name)
    if not dataset.size:
        raise HDF5.error("empty_episode", path, name, "has no rows", field=name)
    limits.check_numbers(HDF5, path, name, dataset.size)
    check_dataset(dataset, path)
    check_written(dataset, path)
    with readable(path, name):
        values: Array = dataset[rows]
    return values.reshape(len(values), -1)


def row_bytes(dataset: Any, index: int) -> bytes:
    """The bytes of a row without the zeros that fill it up."""
    row = dataset[index]
    data = row.tobytes() if hasattr(row, "tobytes") else bytes(row)
    if data.startswith(RIFF_START):  # ends with zeros that strings of NumPy lose
        size = 8 + int.from_bytes(data[4:8], "little")
        return data[:size].ljust(size, b"\0")
    return data.rstrip(b"\0")
