"""Zarr recordings: replay buffers of Diffusion Policy and UMI. Source: formats/zarr 1 to 3.

All episodes follow each other in arrays `data/NAME` [N, ...]; `meta/episode_ends` [E] has the end
of each, exclusive.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FieldSpec, FrameSource, Survey, UInt8Array
from vlatool.errors import VlatoolError, installed
from vlatool.findings import Finding, FindingCodes
from vlatool.sources import base
from vlatool.sources.frames import SingleImages, video_beside
from vlatool.sources.language import first_text, kind_of_name, recorded_language
from vlatool.sources.rules import distinct_recordings
from vlatool.sources.zarr.rules import ZARR
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import can_list

_LARGEST_FIELD = 2**28
_LARGEST_CHUNK = 2**29
_MOST_PIXELS = 2**26
_LEVELS = 255


class ZarrConfig(ConfigModel):
    """Options of replay buffers. What stores do not have is given here."""

    fps: float | None = option(None, "Frames per second.", gt=0)
    instruction: str | None = option(None, "Instruction of all episodes.")
    missing_chunks: Literal["error", "fill"] = option(
        "error",
        "What to do about chunks that are not there: Zarr 3 leaves out those that have "
        "only the fill value.",
    )


@dataclass(frozen=True)
class Buffer:
    """An open replay buffer."""

    path: Path
    arrays: Mapping[str, Any]  # name to array [N, ...]
    stops: tuple[int, ...]  # end of each episode, exclusive
    cameras: Mapping[str, tuple[int, int]]  # name of an array to (height, width)
    fields: tuple[str, ...]  # names of the arrays of numbers
    texts: Mapping[str, str]  # kind of annotation to the name of its array [N]
    ignored: tuple[str, ...]  # names of all others
    num_rows: int  # N
    fps: float | None  # attribute of the store
    instruction: str  # attribute of the store; empty if it has none

    def rows(self, number: int) -> tuple[int, int]:
        """First row of an episode and the one after its last."""
        return (self.stops[number - 1] if number else 0), self.stops[number]


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


@lru_cache(maxsize=4)  # opened once in a process for all its episodes
def open_buffer(path: Path, *, may_fill: bool = False) -> Buffer:
    """The arrays of a store; no row but the ends of episodes is read."""
    with _readable(path, ""):
        zarr = _library()
        from vlatool.sources.zarr.store import CheckedStore

        store = CheckedStore(path, may_fill=may_fill)
        root = zarr.open_group(store, mode="r", use_consolidated=False)
        if "data" not in store.names("") or "episode_ends" not in store.names("meta"):
            raise ZARR.error("unknown_layout", path, "has no meta/episode_ends")
        arrays = {
            name: root[f"data/{name}"]
            for name in sorted(store.names("data"), key=natural_key)
            if not name.startswith(".") and name != "zarr.json"
        }
        arrays = {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}
        stops = np.asarray(root["meta/episode_ends"][...])  # pyright: ignore[reportIndexIssue, reportArgumentType]
    rows = {name: array.shape[0] for name, array in arrays.items() if array.shape}
    count = min(rows.values(), default=0)
    for name, length in rows.items():
        if length != count:
            other = next(name for name, length in rows.items() if length == count)
            reason = f"has {length} rows, data/{other} has {count}"
            raise ZARR.error("length_mismatch", path, f"data/{name}", reason)
    is_list = stops.ndim == 1 and stops.dtype.kind in "iu" and len(stops)
    if not is_list or stops[0] < 0 or (np.diff(stops) < 0).any() or stops[-1] > count:
        raise ZARR.error("bad_ends", path, "meta/episode_ends", f"does not divide {count} rows")
    cameras = {name: array.shape[1:3] for name, array in arrays.items() if _is_images(array)}
    numbers = (name for name, a in arrays.items() if a.shape and a.dtype.kind in "fiub")
    fields = tuple(name for name in numbers if name not in cameras)
    texts = {kind_of_name(name): name for name, array in arrays.items() if _is_text(name, array)}
    used = {*cameras, *fields, *texts.values()}
    ignored = tuple(name for name in arrays if name not in used)
    for name in (*cameras, *fields, *texts.values()):
        _check(path, name, arrays[name])
    fps, instruction = root.attrs.get("fps"), root.attrs.get("instruction")
    is_rate = isinstance(fps, int | float) and math.isfinite(fps) and fps > 0
    sentence = instruction if isinstance(instruction, str) else ""
    rate = float(fps) if is_rate else None
    stops = tuple(stops.tolist())
    return Buffer(path, arrays, stops, cameras, fields, texts, ignored, count, rate, sentence)


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
    return zarr


def _is_images(array: Any) -> bool:
    is_color = len(array.shape) == 4 and array.shape[-1] == 3
    return is_color and (array.dtype == np.uint8 or array.dtype.kind == "f")


def _is_text(name: str, array: Any) -> bool:
    return bool(kind_of_name(name)) and len(array.shape) == 1 and array.dtype.kind in "UT"


def _check(path: Path, name: str, array: Any) -> None:
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    row = math.prod(array.shape[1:])
    if chunk > _LARGEST_CHUNK or row > 3 * _MOST_PIXELS or not row:
        reason = f"chunks of {chunk:,} bytes, {row:,} values in a row"
        raise ZARR.error("too_large", path, f"data/{name}", reason)


class ZarrImages(SingleImages):
    """Images of an episode, read by whole chunks; the last chunk stays in memory."""

    def __init__(self, path: Path, name: str, rows: tuple[int, int], *, may_fill: bool) -> None:
        self._path, self._name, self._rows, self._may_fill = path, name, rows, may_fill
        self._last: tuple[int, UInt8Array] | None = None

    def __len__(self) -> int:
        return self._rows[1] - self._rows[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    @property
    def size(self) -> tuple[int, int]:
        return self._buffer.cameras[self._name]

    @property
    def _buffer(self) -> Buffer:
        return open_buffer(self._path, may_fill=self._may_fill)

    def image(self, index: int) -> UInt8Array:
        array, (first, stop) = self._buffer.arrays[self._name], self._rows
        chunk = (first + index) // array.chunks[0]
        low = max(first, chunk * array.chunks[0])
        if self._last is None or self._last[0] != chunk:
            rows = slice(low, min(stop, (chunk + 1) * array.chunks[0]))
            with _readable(self._path, f"data/{self._name}: frame {index}"):
                self._last = chunk, self._levels(array[rows], index)
        return self._last[1][first + index - low]

    def _levels(self, values: Array, index: int) -> UInt8Array:
        """Values as uint8; float images must be whole levels from 0 to 255, with one above 1."""
        if values.dtype == np.uint8:
            return values
        levels = values.astype(np.uint8, casting="unsafe")
        if (levels == values).all() and (values.max(initial=0) > 1 or not values.any()):
            return levels
        place = f"data/{self._name}: frame {index}"
        reason = f"values of {values.dtype} are no whole levels from 0 to {_LEVELS}"
        raise ZARR.error("not_numeric", self._path, place, reason)


class ZarrReader(base.FormatReader):
    """Reader of replay buffers; a source is a store, or a folder of them."""

    Config: ClassVar[type[ConfigModel]] = ZarrConfig
    findings: ClassVar[FindingCodes | None] = ZARR
    config: ZarrConfig
    layout: str = "replay buffer"

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        findings: list[Finding] = []
        searched = "a folder or zip of Zarr with meta/episode_ends"
        stores = distinct_recordings(sources, _stores, searched, findings)
        used: dict[str, int] = {}
        for path, source in stores:
            buffer = self._open(path)
            left = buffer.num_rows - buffer.stops[-1]
            if left:
                reason = f"{left} of {buffer.num_rows} rows are after the last episode"
                findings.append(ZARR.at("rows_without_episode", path, reason))
            name = base.id_part(path.name.removesuffix(".zip").removesuffix(".zarr"))
            name = base.unused_id(name, used)
            for number in range(len(buffer.stops)):
                yield EpisodeRef(
                    id=f"{name}_episode_{number:06d}",
                    path=path,
                    source=str(source),
                    number=number if len(stores) == 1 else None,
                    extras={"number": number},
                )
        self.source_findings = findings

    def _open(self, path: Path) -> Buffer:
        return open_buffer(path, may_fill=self.config.missing_chunks == "fill")

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras, fields and lengths from shapes; no row is read."""
        reasons: list[VlatoolError] = []
        return base.merge_surveys(base.survey_each(self._survey, refs, reasons), reasons)

    def _survey(self, ref: EpisodeRef) -> Survey:
        buffer, (first, stop) = self._open(ref.path), self._rows(ref)
        actions, observed = _policy_fields(buffer)
        videos = {name: frames.size for name, frames in self._videos(ref, stop - first).items()}
        return Survey(
            1,
            {**buffer.cameras, **videos},
            {name: FieldSpec(math.prod(buffer.arrays[name].shape[1:])) for name in buffer.fields},
            stop - first,
            self.config.fps or buffer.fps,
            actions,
            observed,
            text_kinds=tuple(kind for kind in buffer.texts if kind != "original"),
        )

    def read(self, ref: EpisodeRef) -> Episode:
        buffer, (first, stop) = self._open(ref.path), self._rows(ref)
        lowdim: dict[str, Array] = {}
        for name in buffer.fields:
            array = buffer.arrays[name]
            if math.prod(array.shape[1:]) * (stop - first) * array.dtype.itemsize > _LARGEST_FIELD:
                reason = f"an episode of {stop - first} rows is too large"
                raise ZARR.error("too_large", ref.path, f"data/{name}", reason)
            with _readable(ref.path, f"data/{name}: rows {first} to {stop - 1}"):
                lowdim[name] = np.asarray(array[first:stop]).reshape(stop - first, -1)
        may_fill = self.config.missing_chunks == "fill"
        cameras: dict[str, FrameSource] = {
            name: ZarrImages(ref.path, name, (first, stop), may_fill=may_fill)
            for name in buffer.cameras
        }
        actions, observed = _policy_fields(buffer)
        texts = {"original": [buffer.instruction]}
        for kind, name in buffer.texts.items():
            with _readable(ref.path, f"data/{name}: rows {first} to {stop - 1}"):
                texts[kind] = [str(text) for text in buffer.arrays[name][first:stop]]
        language, findings = recorded_language(ref, stop - first, texts, self.config.instruction)
        if buffer.ignored:
            names = ", ".join(buffer.ignored)
            findings.append(ZARR("ignored", f"{ref.id}: left out: {names}"))
        return Episode(
            id=ref.id,
            task=first_text(language),
            fps=self.config.fps or buffer.fps or 0.0,
            num_frames=stop - first,
            cameras={**cameras, **self._videos(ref, stop - first)},
            lowdim=lowdim,
            language=language[0],
            language_spans=tuple(language[1]),
            action_fields=actions,
            proprioception_fields=observed,
            findings=tuple(findings),
            extras={"source_episode": f"{ref.path.name}:{ref.extras['number']}"},
        )

    def _rows(self, ref: EpisodeRef) -> tuple[int, int]:
        buffer, number = self._open(ref.path), ref.extras["number"]
        first, stop = buffer.rows(number)
        if first == stop:
            reason = f"episode {number} has no rows"
            raise ZARR.error("bad_ends", ref.path, "meta/episode_ends", reason)
        return first, stop

    @staticmethod
    def _videos(ref: EpisodeRef, frames: int) -> dict[str, FrameSource]:
        """Cameras of `videos/NUMBER/CAMERA.mp4` beside the store."""
        folder = ref.path.parent / "videos" / str(ref.extras["number"])
        files = sorted(folder.glob("*.mp4")) if can_list(folder) and folder.is_dir() else ()
        return {file.stem: video_beside(file, frames, ZARR) for file in files}


def _policy_fields(buffer: Buffer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Predicted and observed fields: `action`, and what is named after the robot or its state."""
    actions = tuple(name for name in buffer.fields if name in ("action", "actions"))
    measured = ("state", "agent_pos", "robot")
    observed = tuple(name for name in buffer.fields if name.startswith(measured))
    return actions, tuple(name for name in observed if "demo_" not in name)


def _stores(source: Path) -> list[Path]:
    """Stores at or below a source, in natural order; stores are not entered."""
    if source.name.endswith(".zarr.zip"):
        return [source]
    if not can_list(source):
        return []
    stores: list[Path] = []
    for folder, children, files in walk(source):
        if "meta" in children and "data" in children and {".zgroup", "zarr.json"} & {*files}:
            stores.append(folder)
            children.clear()
        stores += [folder / name for name in files if name.endswith(".zarr.zip")]
    return sorted(stores, key=natural_key)
