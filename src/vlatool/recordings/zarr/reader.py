"""Zarr recordings: replay buffers of Diffusion Policy and UMI. Source: formats/zarr 1 to 3.

All episodes follow each other in arrays `data/NAME` [N, ...]; `meta/episode_ends` [E] has the end
of each, exclusive. How such a store becomes episodes:

1. `discover` finds the stores and makes one `EpisodeRef` for each end of an episode.
2. `open_buffer` opens the arrays and checks that the ends divide their rows. It reads no frame.
3. An `EpisodePlan` (recordings/plan.py) says what each array is: an action, a state, a camera, a
   text, or left out with a reason. All containers share its rules; a mapping overrides them.
4. `read` takes the rows of one episode. Images stay in the store until a frame is asked for.
5. `verify` runs the same steps and collects the findings of `check.py`; `read` raises the first.
"""

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError, VlatoolError, installed
from vlatool.findings import Finding, FindingCodes
from vlatool.media import limits
from vlatool.recordings import base
from vlatool.recordings.inventory import Stored, image_size, is_action
from vlatool.recordings.language import sentences_in
from vlatool.recordings.mapping import MAPPING, RecordingMapping, nearest
from vlatool.recordings.plan import EpisodePlan, PlannedImages, plan_by_structure
from vlatool.recordings.planned import PLAIN, PlannedEpisode, PlannedFrames, PlannedReader
from vlatool.recordings.propose import Clues, proposed_mapping
from vlatool.recordings.rules import distinct_recordings
from vlatool.recordings.zarr.check import ZARR
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import can_list

_MOST_PIXELS = 2**26
_MOST_DEPTH = 8
_MEASURED = ("state", "agent_pos", "robot")
_ENDS = "meta/episode_ends"


class ZarrConfig(ConfigModel):
    """Options of the format `zarr` (replay buffers); they add what your stores do not have."""

    location_keys: ClassVar[frozenset[str]] = frozenset({"mapping"})

    fps: float | None = option(
        None, "Frames per second of the recordings.", ge=limits.RATES[0], le=limits.RATES[1]
    )
    instruction: str | None = option(None, "Instruction of all episodes.")
    mapping: str | None = option(None, MAPPING)
    missing_chunks: Literal["error", "fill"] | None = option(
        None,
        "Treat missing chunks as an error, or as full of the fill value. null: an error in Zarr 2; "
        "the fill value in Zarr 3, which leaves such chunks out.",
    )


@dataclass(frozen=True)
class Buffer:
    """An open replay buffer."""

    path: Path
    arrays: Mapping[str, Any]  # path below `data`, or from the root with a slash, to the array
    stops: tuple[int, ...]  # end of each episode, exclusive
    num_rows: int  # N
    attributes: Mapping[str, Any]  # of the root
    broken: Mapping[str, DataError]  # path, as in `arrays`, of those that cannot be opened

    @property
    def sentences(self) -> Mapping[str, str]:
        """Instructions in attributes that are JSON."""
        return sentences_in(self.attributes)

    def rows(self, number: int) -> tuple[int, int]:
        """First row of an episode and the one after its last."""
        first = self.stops[number - 1] if number else 0
        return first, self.stops[number]


@contextmanager
def _readable(path: Path, place: str) -> Generator[None]:
    try:
        yield
    except VlatoolError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        code = "missing_codec" if "codec not available" in reason else "unreadable"
        raise ZARR.error(code, path, place, f"cannot be read: {reason}") from error


def _read_rows(array: Any, rows: slice) -> Array:
    from vlatool.recordings.zarr import store

    return store.read_rows(array, rows)


@lru_cache(maxsize=4)  # opened once in a process for all its episodes
def open_buffer(path: Path, missing_chunks: str | None = None) -> Buffer:
    """The arrays of a store; no row but the ends of episodes is read."""
    attributes, stored, broken = open_arrays(path, missing_chunks)
    ends = stored.pop(_ENDS, None)
    if ends is None or not any(name.startswith("data/") for name in stored):
        for error in broken.values():
            raise error
        raise ZARR.error("unknown_layout", path, f"has no {_ENDS}")
    arrays: dict[str, Any] = {}
    lengths: list[int] = []
    for name, array in stored.items():
        arrays[_below_data(name)] = array
        if array.shape and name.startswith("data/"):
            lengths.append(array.shape[0])
    count = max(lengths, key=lengths.count, default=0)
    with _readable(path, _ENDS):
        stops: Array = _read_rows(ends, slice(None)) if ends.shape else np.empty(0)
    is_list = stops.ndim == 1 and stops.dtype.kind in "iu" and len(stops)
    # Unsigned numbers have no negative differences.
    is_ascending = is_list and stops[0] >= 0 and not (stops[1:] < stops[:-1]).any()
    if not is_ascending or stops[-1] > count:
        raise ZARR.error("bad_ends", path, _ENDS, f"does not divide the {count} rows")
    if len(stops) > min(count, limits.MOST_EPISODES):
        reason = f"has {len(stops):,} ends of episodes for {count:,} rows"
        raise ZARR.error("bad_ends", path, _ENDS, reason)
    by_name = {_below_data(name): error for name, error in broken.items()}
    return Buffer(path, arrays, tuple(stops.tolist()), count, attributes, by_name)


def _below_data(name: str) -> str:
    """Path of an array below `data`, or from the root with a slash."""
    return name.removeprefix("data/") if name.startswith("data/") else f"/{name}"


def open_arrays(
    path: Path, missing_chunks: str | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, DataError]]:
    """Opens the arrays of a store; no row is read.

    Returns the attributes of its root, its arrays by path, and the errors of arrays that cannot be
    opened.

    Raises:
        DataError: An array of actions cannot be opened, or a codec is not installed.
    """
    with _readable(path, ""):
        zarr = _library()
        from vlatool.recordings.zarr.store import CheckedStore

        store = CheckedStore(path, missing_chunks)
    attributes: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    broken: dict[str, DataError] = {}
    try:
        with _readable(path, ""):
            root = zarr.open_group(store, mode="r", use_consolidated=False)
            attributes |= root.attrs
    except DataError as error:
        broken["attributes"] = error
    for name in _array_paths(store, ""):
        try:
            with _readable(path, name):
                arrays[name] = zarr.open_array(store, path=name, mode="r")
        except DataError as error:
            # Without its actions an episode is of no use, and a codec can be installed.
            if is_action(name) or error.details.get("finding") == "missing_codec":
                raise
            broken[name] = error
    return attributes, arrays, broken | store.broken


def _array_paths(store: Any, at: str, depth: int = 0) -> Iterator[str]:
    """Paths of the arrays of a store, in natural order."""
    names = set(store.names(at))
    if ".zarray" in names or store.is_array(at):
        yield at
        return
    for name in sorted(names, key=natural_key):
        if depth < _MOST_DEPTH and not name.startswith(".") and name != "zarr.json":
            yield from _array_paths(store, f"{at}/{name}".lstrip("/"), depth + 1)


def _library() -> Any:
    """The library, with the codecs of images that are installed.

    The lock of its codec blosc is made here without a name: a named one, as spawned processes make
    them, would outlive a worker that is terminated.
    """
    import multiprocessing

    method = multiprocessing.get_start_method(allow_none=True)
    is_spawned = method == "spawn" and "fork" in multiprocessing.get_all_start_methods()
    if is_spawned:
        multiprocessing.set_start_method("fork", force=True)
    try:
        zarr = installed("zarr")
        installed("numcodecs.blosc").get_mutex()
    finally:
        if is_spawned:
            multiprocessing.set_start_method(method, force=True)
    with suppress(ImportError):
        from imagecodecs.numcodecs import register_codecs  # pyright: ignore[reportMissingImports]

        register_codecs(verbose=False)
    from vlatool.recordings.zarr.store import use_checked_codecs

    use_checked_codecs()
    return zarr


class _DecodedChunk(NamedTuple):
    number: int
    first: int  # row of the store
    rows: Array


class ZarrImages(PlannedFrames):
    """Images of an episode, read by whole chunks; the last chunk stays in memory."""

    def __init__(
        self, path: Path, planned: PlannedImages, rows: tuple[int, int], missing_chunks: str | None
    ) -> None:
        self._path = path
        self.planned = planned
        self._rows = rows
        self._missing_chunks = missing_chunks
        self._last: _DecodedChunk | None = None

    def __len__(self) -> int:
        return self._rows[1] - self._rows[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    @property
    def _array(self) -> Any:
        return open_buffer(self._path, self._missing_chunks).arrays[self.planned.path]

    @property
    def size(self) -> tuple[int, int]:
        return image_size(self._array.shape[1:])

    def row(self, index: int) -> Array:
        array = self._array
        first, stop = self._rows
        length = array.chunks[0]
        number = (first + index) // length
        if self._last is None or self._last.number != number:
            start = max(first, number * length)
            rows = slice(start, min(stop, (number + 1) * length))
            with _readable(self._path, f"data/{self.planned.path}: frame {index}"):
                self._last = _DecodedChunk(number, start, _read_rows(array, rows))
        return self._last.rows[first + index - self._last.first]

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"data/{self.planned.path}: frame {index}"
        return ZARR.error("not_numeric", self._path, place, reason, frame=index)


class ZarrEpisode(PlannedEpisode):
    """An episode of an open buffer."""

    codes: ClassVar[FindingCodes] = ZARR
    missing: ClassVar[str] = "missing_array"

    def __init__(
        self, ref: EpisodeRef, buffer: Buffer, mapping: RecordingMapping | None, config: ZarrConfig
    ) -> None:
        super().__init__(ref, mapping, config, str(ref.extras["number"]))
        self.buffer = buffer
        self.first, self.stop = buffer.rows(ref.extras["number"])
        if self.first == self.stop:
            raise ZARR.error(
                "bad_ends", ref.path, "meta/episode_ends", f"episode {self._episode} has no rows"
            )
        stored = _things(buffer, self.first, self.stop)
        stored += [Stored(f"@{name}", "text", role="language") for name in buffer.sentences]
        for name, value in buffer.attributes.items():
            if name in ("fps", "instruction"):
                continue
            if isinstance(value, str):
                stored.append(Stored(f"@{name}", "text"))
            else:
                stored.append(Stored(f"@{name}", "other", note="an attribute"))
        self.make_plan(stored)

    def stored_fps(self) -> float | None:
        return limits.possible_rate(self.buffer.attributes.get("fps"))

    def plan_by_structure(self, stored: Sequence[Stored]) -> EpisodePlan:
        """`action` is predicted; what is named after the robot or its state is observed."""
        plan = plan_by_structure(stored, self.known)
        plan.actions = tuple(name for name in plan.fields if name in ("action", "actions"))
        observed: list[str] = []
        for name in plan.fields:
            if name.startswith(_MEASURED) and "demo_" not in name:
                observed.append(name)
        plan.observed = tuple(observed)
        folder = self.ref.path.parent
        videos = folder / "videos" / self._episode
        for path in sorted(videos.glob("*.mp4")) if can_list(videos) and videos.is_dir() else ():
            name = base.unused_id(path.stem, dict.fromkeys(plan.cameras, 1))
            plan.cameras[name] = PlannedImages(video=f"videos/{{episode}}/{path.name}")
        instruction = self.buffer.attributes.get("instruction")
        if isinstance(instruction, str) and not any(kind == "original" for kind, _ in plan.texts):
            plan.texts.append(("original", f"{PLAIN}{instruction}"))
        return plan

    def name_of(self, reference: str) -> str:
        return reference.removeprefix("data/")

    def _array(self, path: str) -> Any:
        """The array of a part; DataError if images are too large, or rows are more or less."""
        array = self.buffer.arrays[path]
        row = math.prod(array.shape[1:])
        if row > 3 * _MOST_PIXELS or not row:
            raise ZARR.error("too_large", self.ref.path, f"data/{path}", f"rows of {row:,} values")
        if not array.shape or array.shape[0] != self.buffer.num_rows:
            rows = array.shape[0] if array.shape else "no"
            reason = f"has {rows} rows, the other arrays have {self.buffer.num_rows}"
            raise ZARR.error("length_mismatch", self.ref.path, f"data/{path}", reason)
        return array

    def open_images(self, planned: PlannedImages) -> FrameSource:
        self._array(planned.path)
        rows = (self.first, self.stop)
        return ZarrImages(self.ref.path, planned, rows, self.config.missing_chunks)

    def numbers(self, path: str) -> Array:
        array = self._array(path)
        rows = self.stop - self.first
        if array.dtype.kind not in "fiub":
            raise ZARR.error("not_numeric", self.ref.path, f"data/{path}", f"is {array.dtype}")
        count = rows * math.prod(array.shape[1:])
        limits.check_numbers(ZARR, self.ref.path, f"data/{path}", count)
        return self._rows(path, slice(self.first, self.stop)).reshape(rows, -1)

    def _rows(self, path: str, rows: slice) -> Array:
        place = f"data/{path}: rows {rows.start} to {rows.stop - 1}"
        with _readable(self.ref.path, place):
            return _read_rows(self.buffer.arrays[path], rows)

    def _own_rows(self, name: str) -> Array:
        """Values of the episode in an array that has one for each frame, or for each episode."""
        path = self.find_stored(name).path
        number = self.ref.extras["number"]
        rows = slice(number, number + 1)
        if self.buffer.arrays[path].shape[:1] == (self.buffer.num_rows,):
            rows = slice(self.first, self.stop)
        return self._rows(path, rows).reshape(-1)

    def texts_of(self, name: str, count: int) -> list[str]:
        return [base.text_of(value) for value in self._own_rows(name)[:count]]

    def value_of(self, name: str) -> Any:
        place, has_attribute, attribute = name.partition("@")
        if not has_attribute:
            return self._own_rows(name)[-1].item()
        attributes = {**self.buffer.attributes, **self.buffer.sentences}
        if place.strip("/") or attribute not in attributes:
            reason = f"{name}: is missing; {nearest(attribute, [*attributes])}"
            raise self.error(self.missing, reason, field=name)
        return attributes[attribute]


def _things(buffer: Buffer, first: int, stop: int) -> list[Stored]:
    """What an episode of a buffer stores, in its rows from `first` to `stop`."""
    things: list[Stored] = []
    for path, error in buffer.broken.items():
        things.append(Stored(path, "other", note=error.message, role="left_out"))
    for path, array in buffer.arrays.items():
        shape = array.shape
        dtype = array.dtype
        is_per_row = bool(shape) and shape[0] == buffer.num_rows
        is_by_episode = bool(shape) and shape[0] == len(buffer.stops)
        if dtype.kind in "UTSO" and math.prod(shape[1:]) == 1 and (is_per_row or is_by_episode):
            things.append(Stored(path, "text", rows=stop - first if is_per_row else None))
        elif dtype.kind in "UTSO":
            note = f"texts {list(shape)}, neither one per row nor one per episode"
            things.append(Stored(path, "other", note=note))
        elif dtype.kind not in "fiub":
            things.append(Stored(path, "other", note=f"values of {dtype}"))
        elif path.startswith("/") and not (is_per_row or is_by_episode):
            things.append(Stored(path, "other", note="it is not in the group data"))
        elif is_by_episode and not is_per_row:
            is_success = path.rpartition("/")[2] in ("success", "is_success")
            note = "one value per episode"
            things.append(Stored(path, "other", note=note, role="success" if is_success else None))
        elif not is_per_row and not is_action(path):
            note = f"{shape[0] if shape else 'no'} rows, the others have {buffer.num_rows}"
            things.append(Stored(path, "array", shape[1:], dtype.name, note=note, role="left_out"))
        else:
            rows: int | None = None
            if shape:
                rows = stop - first if is_per_row else shape[0]
            look = partial(_three_rows, buffer.path, path, array, first, stop)
            things.append(Stored(path, "array", shape[1:], dtype.name, rows, look=look))
    return things


def _three_rows(path: Path, name: str, array: Any, first: int, stop: int) -> Array:
    """The first, the middle and the last of some rows."""
    rows: list[Array] = []
    with _readable(path, f"data/{name}"):
        for row in base.first_middle_last(stop - first):
            rows.append(_read_rows(array, slice(first + row, first + row + 1)))
        return np.concatenate(rows)


class ZarrReader(PlannedReader):
    """Reader of replay buffers; a source is a store, or a folder of them."""

    Config: ClassVar[type[ConfigModel]] = ZarrConfig
    findings: ClassVar[FindingCodes | None] = ZARR
    config: ZarrConfig
    layout: str = "replay buffer"

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """The episodes of all stores; a store that cannot be opened is one broken episode."""
        findings: list[Finding] = []
        searched = "a folder or zip of Zarr with meta/episode_ends"
        stores = distinct_recordings(sources, _stores, searched, findings)
        refs: list[EpisodeRef] = []
        used: dict[str, int] = {}
        errors: list[DataError] = []
        listing = time.time_ns()
        for path, source in stores:
            name = base.id_part(path.name.removesuffix(".zip").removesuffix(".zarr"))
            name = base.unused_id(name, used)
            try:
                buffer = self._open(path)
            except DataError as error:
                errors.append(error)
                refs.append(EpisodeRef(name, path, str(source), extras={"number": 0}))
                continue
            findings += [ZARR.from_error(error) for error in buffer.broken.values()]
            left = buffer.num_rows - buffer.stops[-1]
            if left:
                reason = f"{left} of {buffer.num_rows} rows are after the last episode"
                findings.append(ZARR.at("rows_without_episode", path, reason))
            for number in range(len(buffer.stops)):
                refs.append(
                    EpisodeRef(
                        id=f"{name}_episode_{number:06d}",
                        path=path,
                        source=str(source),
                        number=number if len(stores) == 1 else None,
                        extras={"number": number},
                        listing=listing if len(buffer.stops) > 1 else 0,
                    )
                )
        if len(errors) == len(stores):
            raise errors[0]
        self.source_findings = findings
        yield from self.with_decisions(refs)

    def _open(self, path: Path) -> Buffer:
        return open_buffer(path, self.config.missing_chunks)

    def _episode(self, ref: EpisodeRef) -> ZarrEpisode:
        return ZarrEpisode(ref, self._open(ref.path), self.mapping, self.config)

    def opened(self, ref: EpisodeRef) -> AbstractContextManager[ZarrEpisode]:
        return nullcontext(self._episode(ref))

    def read(self, ref: EpisodeRef) -> Episode:
        extras = {"source_episode": f"{ref.path.name}:{ref.extras['number']}"}
        return replace(self._episode(ref).episode(), extras=extras)

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first store, with questions as comments."""
        path = next(iter(_stores(source)), None)
        if path is None:
            return None
        ref = EpisodeRef("episode", path, str(source), extras={"number": 0})
        episode = ZarrEpisode(ref, open_buffer(path), None, ZarrConfig())
        values = {f"@{name}": value for name, value in episode.buffer.attributes.items()}
        things = [*episode.things.values()]
        return proposed_mapping(Clues(things, values, episode.numbers))


def _stores(source: Path) -> list[Path]:
    """Stores at or below a source, in natural order; stores are not entered."""
    if source.name.endswith(".zarr.zip"):
        return [source]
    stores: list[Path] = []
    for folder, children, files in base.walk_source(source):
        has_document = ".zgroup" in files or "zarr.json" in files
        if has_document and "meta" in children and "data" in children:
            stores.append(folder)
            children.clear()
        for name in files:
            if name.endswith(".zarr.zip"):
                stores.append(folder / name)
    return sorted(stores, key=natural_key)
