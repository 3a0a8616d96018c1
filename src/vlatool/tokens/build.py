"""Builds the samples of episodes from windows: looks up codes, encodes actions, adds up totals.

Legend: W windows, H actions of a window, D values of an action. Source: reference/future-vla 5.1.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vlatool.datasets.codes.layout import (
    IMAGES_NAME,
    JSON_NAME,
    PACKED_NAME,
    CodesFolder,
    is_codes,
)
from vlatool.datasets.fast.layout import read_fast
from vlatool.datasets.jsonl import layout as windows_layout
from vlatool.datasets.samples import layout as samples_layout
from vlatool.datasets.samples import profile as profiles
from vlatool.datasets.samples.check import BUILD
from vlatool.datasets.samples.episode import (
    EpisodeSamples,
    SampleSizes,
    assemble,
    distinct_windows,
    parse_sample,
    question,
)
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import InputState, input_state
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import check_downloaded, contents_record
from vlatool.jobs.record import read_record
from vlatool.media.lines import LINES_SUFFIX, read_lines, write_lines
from vlatool.media.tar import INDEX_SUFFIX
from vlatool.models.future_vla.token_ids import TokenIds
from vlatool.recordings.artifact import other_contents_error
from vlatool.storage.atomic import write_bytes
from vlatool.storage.documents import read_document
from vlatool.storage.tree import files_below
from vlatool.storage.uri import location
from vlatool.transforms.action_tokenizer import ActionTokenizer, EncodedActions

_ROTATIONS = ("roll", "pitch", "yaw")
_TEXT_TOKENIZER = "tokenizer.json"
_MAX_ACTION_IDS = 2**16  # packed samples have 16 bits per id


class WindowFile(NamedTuple):
    episode: str  # name of the episode: name of the file without suffix
    path: Path

    @property
    def number(self) -> int | None:
        """Number of the episode; None if its name has none."""
        number = self.episode.removeprefix(windows_layout.EPISODE_PREFIX)
        return int(number) if number.isdecimal() else None


def check_output_outside_input(output: Path, tree: Path) -> None:
    """Raises UsageError if the output is the input or inside one of its folders."""
    inputs = (
        tree / name for name in (windows_layout.DATA_NAME, IMAGES_NAME, PACKED_NAME, JSON_NAME)
    )
    if output.resolve() == tree.resolve() or any(
        samples_layout.is_inside(output, path) for path in inputs
    ):
        raise UsageError(
            f"{output}: is part of the input, which is never changed",
            hint=f"choose another --output, such as {tree / 'built'}",
            code="usage.output_exists",
        )


def window_files(tree: Path, pattern: str) -> list[WindowFile]:
    """Files of windows in a tree, sorted by name."""
    may_be_mixed = samples_layout.is_published(tree)  # each of its files is read
    if samples_layout.is_samples(tree) and not may_be_mixed:
        raise DataError.at(
            tree,
            "holds samples, not windows",
            hint="give the folder that `vlatool preprocess` wrote, not a folder of `build-dataset`",
            code="data.incomplete",
        )
    is_known = may_be_mixed or windows_layout.is_windows(tree)
    if not is_known and (error := _other_contents_error(tree)) is not None:
        raise error
    record = contents_record(tree)
    if record is not None and windows_layout.read_manifest(tree) is None:
        raise record.no_manifest_error(tree)
    paths = sorted(path for path in tree.glob(pattern) if path.name.endswith(LINES_SUFFIX))
    files = [WindowFile(path.name.removesuffix(LINES_SUFFIX), path) for path in paths]
    if not files:
        raise DataError.at(
            tree,
            f"no file of windows matches {pattern}",
            hint="give the folder that `vlatool preprocess libero` wrote, or another --pattern",
            code="data.no_samples",
        )
    return files


def _other_contents_error(tree: Path) -> DataError | None:
    return other_contents_error(
        tree,
        "windows",
        "write windows with `vlatool preprocess SOURCE --sink jsonl --output DIR`",
        "data.no_samples",
    )


def select_codes(tree: Path, named: Path | None = None) -> CodesFolder:
    """The codes for a folder of windows; packed codes if both layouts exist. `named`: folder of the
    codes; None: the folder in `tree`.
    """
    folders = [tree / name for name in (PACKED_NAME, JSON_NAME)]
    present = [folder for folder in folders if is_codes(folder)] if named is None else [named]
    if not present:
        raise DataError.at(
            tree,
            f"has no codes: neither {PACKED_NAME}/ nor {JSON_NAME}/ exists",
            hint="encode the images first, or name the folder of codes: --tokens DIR",
            code="data.missing",
        )
    opened = [CodesFolder.open(folder) for folder in present]
    for other in opened[1:]:
        if opened[0].manifest.identity() != other.manifest.identity():
            raise UsageError(
                f"{tree}: {PACKED_NAME}/ and {JSON_NAME}/ are codes of different tokenizers",
                hint=f"choose one of them: --tokens {opened[0].path}",
                code="usage.conflict",
            )
    # Raises DataError if the images were written again after the codes.
    codes = opened[0]
    record = read_record(codes.path)
    above = read_record(codes.path.parent)
    if record and above and record.parent and record.parent != above.fingerprint:
        raise DataError.at(
            codes.path,
            f"these codes are of earlier images: {codes.path.parent} was written again since",
            hint="encode the images again with --overwrite",
            code="data.incomplete",
        )
    return opened[0]


def compatible_tokenizer(folder: Path) -> ActionTokenizer:
    """The action tokenizer in a folder; raises DataError if it has too many ids for samples."""
    check_downloaded(folder)
    tokenizer = read_fast(folder)
    if tokenizer.vocab_size > _MAX_ACTION_IDS:
        raise DataError.at(
            folder,
            f"{tokenizer.vocab_size} ids, but samples can have {_MAX_ACTION_IDS}",
            hint=f"fit a tokenizer with --vocab-size {_MAX_ACTION_IDS} or less",
            code="data.mismatch",
        )
    return tokenizer


def select_profile(
    name: str | None, fast: Path, gripper: profiles.Gripper | None
) -> profiles.NormalizationProfile:
    """Profile by name or file; default: the profile of the action tokenizer, else `PUBLISHED`."""
    if not profiles.has_profile(fast):
        return profiles.read_profile(name or profiles.PUBLISHED, gripper)
    profile = profiles.read_profile(name or str(fast), gripper)
    profiles.check_same_profile(profile, profiles.read_profile(str(fast)))
    return profile


def check_factor(profile: profiles.NormalizationProfile, factor: float | None) -> None:
    """Checks the factor that scales rotations in a profile, if one is given."""
    by_name = dict(zip(profile.dimensions, profile.factors, strict=True))
    if factor is not None and any(by_name.get(name) != factor for name in _ROTATIONS):
        raise UsageError(
            f"rpy_std_mult {factor:g} differs from the factor of the profile {profile.name}",
            hint="write a profile with this factor, and give it with --profile FILE",
            code="usage.bad_value",
        )


def read_text_tokenizer(text: str | None, sizes: SampleSizes) -> Any:
    """Tokenizer of a language model (`tokenizers.Tokenizer`); None if none is configured.

    `text`: location of a folder with a tokenizer.json; may be None; `sizes`: sizes of codes and
    action ids, for which it must have room.
    """
    if text is None:
        return None
    from tokenizers import Tokenizer

    folder = location(text)
    try:
        tokenizer = Tokenizer.from_str(read_document(folder / _TEXT_TOKENIZER))
    except Exception as error:  # noqa: BLE001 - the parser raises this very class
        raise DataError(
            f"{folder / _TEXT_TOKENIZER}: not a tokenizer: {error}",
            hint="give the folder of a language model, or leave --tokenizer out",
            code="data.broken",
            details={"path": str(folder)},
        ) from None
    TokenIds.of(tokenizer, sizes)
    return tokenizer


def instructions_with_code_ids(
    tasks: Sequence[str], tokenizer: Any, sizes: SampleSizes
) -> list[str]:
    """Instructions whose token ids could be read as codes or actions.

    `tokenizer`: result of `read_text_tokenizer`. None returns instructions with characters outside
    ASCII, because the ids in question belong to other scripts.
    """
    if tokenizer is None:
        return [task for task in tasks if not task.isascii()]
    ids = TokenIds.of(tokenizer, sizes)
    overlapping: list[str] = []
    for task in dict.fromkeys(tasks):
        encoding = tokenizer.encode(question("vla", task, 0, ""), add_special_tokens=False)
        if ids.reserved(encoding.ids):
            overlapping.append(task)
    return overlapping


SamplesLayout = Literal["jsonl", "packed"]

_HINT = "write the windows again with `vlatool preprocess`, or copy them again"


class WindowShape(NamedTuple):
    """Sizes that all windows share: images, future images, steps and values of an action."""

    pictures: int
    future: int
    steps: int
    width: int


@dataclass(frozen=True)
class EpisodeBuilder:
    """Writes the samples of an episode; picklable."""

    output: Path  # the output folder
    tree: Path  # the folder of windows
    codes: CodesFolder  # codes of the images
    fast: Path  # folder of the action tokenizer
    fast_digest: str  # expected digest of the action tokenizer
    fast_steps: int | None  # steps of the chunks that it was fitted on; None if unknown
    action_ids: int  # number of its ids
    profile: profiles.NormalizationProfile  # normalization of the actions
    kinds: tuple[windows_layout.Kind, ...]  # kinds of windows that are used
    layout: SamplesLayout
    prefix: str  # prefix of the path of each image in a line

    def __call__(self, item: WindowFile) -> Receipt:
        """Writes the lines with their index, or the packed samples."""
        windows = [_stripped(window) for window in _windows(item.path) if window.kind in self.kinds]
        if not windows:
            return Receipt(item.episode, counts={"samples": 0})
        shape = common_shape(item.path, windows)
        self._check_steps(item, shape.steps)
        distinct, _ = distinct_windows(windows)
        _check_no_repeats(item, windows)
        _check_own_episode(item, distinct)
        self._check_images(item, distinct)
        ids, findings = self._action_ids(item, distinct)
        samples = assemble(windows, ids, _codes_by_path(self.codes, distinct))
        kinds = Counter(window.kind for window in windows)
        actions = np.array([window.actions for window in distinct], np.float64)
        return Receipt(
            item.episode,
            counts={"samples": len(windows), "windows": len(distinct), **kinds},
            files=self._write(item, samples),
            findings=findings,
            facts={
                "shape": list(shape),
                "action_range": [
                    actions.min(axis=(0, 1)).tolist(),
                    actions.max(axis=(0, 1)).tolist(),
                ],
                "ids": sorted(Counter(map(len, ids)).items()),
                "tasks": dict(Counter(window.task for window in windows)),
            },
        )

    @property
    def sizes(self) -> SampleSizes:
        codes = self.codes.manifest
        return SampleSizes(codes.codes_per_picture, codes.codebook_size, self.action_ids)

    def state(self, item: WindowFile) -> InputState:
        """Current state of the windows and of their codes; codes are identified by their digest."""
        digest = self.codes.manifest.episode_digests.get(item.episode)
        if digest:
            return input_state([item.path], digest)
        return input_state([item.path, self.codes.path_of(item.episode)])

    def _write(self, item: WindowFile, samples: EpisodeSamples) -> tuple[FileEntry, ...]:
        if self.layout == "jsonl":
            return write_lines(
                self.output, windows_layout.lines_name(item.episode), samples.lines(self.prefix)
            )
        content = samples.content()
        name = samples_layout.packed_name(item.episode)
        write_bytes(self.output / name, content)
        return (FileEntry(name, len(content), hashlib.sha256(content).hexdigest(), len(samples)),)

    def _check_steps(self, item: WindowFile, steps: int) -> None:
        """Raises DataError if the action tokenizer was fitted on chunks of another length."""
        if self.fast_steps in (None, steps):
            return
        raise DataError.at(
            item.path,
            f"the windows have {steps} actions, but the action tokenizer was fitted on chunks of "
            f"{self.fast_steps}",
            hint="fit a tokenizer on these windows with `vlatool tokenizer fit-fast`",
            code="data.mismatch",
        )

    def _check_images(self, item: WindowFile, windows: Sequence[windows_layout.Window]) -> None:
        """Raises DataError if an image that the samples name is missing or empty."""
        names: dict[str, None] = {}
        for window in windows:
            names |= dict.fromkeys(window.images)
        existing: set[str] = set()
        for folder in {path.rpartition("/")[0] for path in names}:
            for file in files_below(self.tree / folder):
                if file.bytes:
                    existing.add(f"{folder}/{file.name}")
        missing = [name for name in names if name not in existing]
        if missing:
            more = f", and {len(missing) - 1} more images" if len(missing) > 1 else ""
            raise DataError.at(
                self.tree / missing[0],
                f"is missing or empty{more}, but windows name it",
                hint="copy the images again, write them again with `vlatool preprocess`, or leave "
                "the episode out with --exclude",
                code="data.missing",
                episode=item.episode,
                pictures=missing[:20],
            )

    def _action_ids(
        self, item: WindowFile, windows: Sequence[windows_layout.Window]
    ) -> tuple[list[list[int]], tuple[Finding, ...]]:
        try:
            tokenizer = action_tokenizer(self.fast, self.fast_digest)
            encoded = _encode_actions(tokenizer, self.profile, windows)
        except ValueError as error:
            raise _window_error(item.path, str(error), "data.mismatch") from None
        except DataError as error:
            raise _window_error(item.path, f"distinct windows, {error}", error.code) from None
        clamped = int(np.count_nonzero(encoded.clamped))
        message = (
            f"{item.path}: actions are clamped in {clamped} of {counted(len(windows), 'window')}"
        )
        finding = BUILD("clamped_actions", message, episode=item.episode)
        return encoded.ids, (finding,) if clamped else ()


@lru_cache(maxsize=1)
def action_tokenizer(folder: Path, digest: str) -> ActionTokenizer:
    """The action tokenizer in a folder, read once per process."""
    tokenizer = read_fast(folder)
    if tokenizer.digest != digest:
        raise _window_error(folder, "has changed since this command started", "data.mismatch")
    return tokenizer


def _windows(path: Path) -> Iterator[windows_layout.Window]:
    """Windows in a file; raises DataError as `read_windows`, or if a line is a sample."""
    try:
        yield from windows_layout.read_windows(path)
    except DataError as error:
        if "line" not in error.details or not _is_sample_line(path, error.details["line"]):
            raise
        raise DataError.at(
            path,
            "holds samples, not windows: actions and future images are already encoded",
            hint="give the folder that `vlatool preprocess` wrote, not a folder of `build-dataset`",
            code="data.incomplete",
        ) from None


def _is_sample_line(path: Path, number: int) -> bool:
    with suppress(ValueError):
        return any(parse_sample(line) for line in islice(read_lines(path), number - 1, number))
    return False


def common_shape(path: Path, windows: Sequence[windows_layout.Window]) -> WindowShape:
    """Shape that all windows share."""
    shapes = {
        WindowShape(
            len(window.images), len(window.future), len(window.actions), len(window.actions[0])
        ): window
        for window in windows
    }
    if len(shapes) > 1:
        listed = " and ".join(str(list(shape)) for shape in shapes)
        raise _window_error(path, f"the windows have different shapes: {listed}", "data.mismatch")
    shape = next(iter(shapes))
    if not shape.future:
        raise _window_error(path, "the windows have no future images", "data.mismatch")
    for task in {window.task for window in windows}:
        try:
            question("vla", task, shape.pictures, "")
        except ValueError as error:
            raise _window_error(path, str(error), "data.broken") from None
    return shape


def _check_no_repeats(item: WindowFile, windows: Sequence[windows_layout.Window]) -> None:
    """Raises DataError if a window occurs twice."""
    seen: set[tuple[object, ...]] = set()
    for window in windows:
        key = (window.kind, window.task, *window.images[-1:])
        if key in seen:
            reason = f"two {window.kind} windows that end at {window.images[-1]} are equal"
            raise _window_error(item.path, reason, "data.broken")
        seen.add(key)


def _check_own_episode(item: WindowFile, windows: Sequence[windows_layout.Window]) -> None:
    """Raises DataError if a window names an image of another episode or folder."""
    paths: set[str] = set()
    for window in windows:
        paths.update(window.images, window.future)
    for path in paths:
        if (folder := windows_layout.image_folder(path)) is None:
            reason = f"{path[:200]!r} is not a path such as {IMAGES_NAME}/EPISODE/NAME.png"
            raise _window_error(item.path, reason, "data.mismatch")
        if item.episode.startswith(windows_layout.EPISODE_PREFIX) and folder != item.episode:
            raise _window_error(item.path, f"{path} belongs to another episode", "data.mismatch")


def _window_error(path: Path, reason: str, code: str) -> DataError:
    return DataError.at(path, reason, hint=_HINT, code=code)


@dataclass
class DatasetTotals:
    """Totals over the episodes added so far."""

    files: list[FileEntry] = field(default_factory=list[FileEntry])  # written files
    episodes: int = 0  # number of episodes with samples
    kinds: Counter[str] = field(default_factory=Counter[str])  # map from kind to number of samples
    # map from instruction to number of samples
    tasks: Counter[str] = field(default_factory=Counter[str])
    # number of action ids of a window to number of such windows
    id_counts: Counter[int] = field(default_factory=Counter[int])
    shape: WindowShape | None = None  # shape that all windows share
    # Smallest and largest action of each episode, [2, D]; those of older versions have none.
    ranges: list[Any] = field(default_factory=list[Any])

    @property
    def samples(self) -> int:
        return self.kinds.total()

    def add(self, receipt: Receipt) -> None:
        if not receipt.files:
            return
        shape = WindowShape(*receipt.facts["shape"])
        if self.shape not in (None, shape):
            raise DataError(
                f"{receipt.item}: windows have the shape {list(shape)}, but earlier episodes "
                f"{list(self.shape or ())} (images, future images, actions, values)",
                hint="build the data of one shape at a time, and select it with --pattern",
                code="data.mismatch",
                details={"episode": receipt.item},
            )
        self.shape = shape
        self.episodes += 1
        self.files += receipt.files
        if "action_range" in receipt.facts:
            self.ranges.append(receipt.facts["action_range"])
        self.tasks.update(receipt.facts["tasks"])
        self.id_counts.update(dict(receipt.facts["ids"]))
        for key, number in receipt.counts.items():
            if key not in ("samples", "windows"):
                self.kinds[key] += number

    def action_ids(self) -> dict[str, float]:
        """Minimum, mean and maximum number of action ids of a window; empty without windows."""
        windows = self.id_counts.total()
        if not windows:
            return {}
        total = sum(length * times for length, times in self.id_counts.items())
        lengths = (min(self.id_counts), max(self.id_counts))
        return {"min": lengths[0], "mean": round(total / windows, 3), "max": lengths[1]}

    def _action_range(self) -> dict[str, Any]:
        if len(self.ranges) < self.episodes:
            return {}
        low, high = np.transpose(self.ranges, (1, 0, 2))
        return {"action_range": {"min": low.min(0).tolist(), "max": high.max(0).tolist()}}

    def document(self) -> dict[str, Any]:
        assert self.shape is not None
        return {
            "episodes": self.episodes,
            "samples": self.samples,
            "kinds": dict(sorted(self.kinds.items())),
            "shape": self.shape._asdict(),
            **self._action_range(),
            "action_ids": {
                **self.action_ids(),
                "counts": {
                    str(length): self.id_counts[length] for length in sorted(self.id_counts)
                },
            },
            "tasks": dict(self.tasks),
        }


def data_files(entries: Sequence[FileEntry]) -> list[tuple[str, int]]:
    """(path, number of samples) of each file of samples, indexes excluded."""
    return [
        (entry.path, entry.samples or 0)
        for entry in entries
        if not entry.path.endswith(INDEX_SUFFIX)
    ]


def write_shards(
    work: EpisodeBuilder, packed: Sequence[FileEntry], limit: int
) -> Iterator[FileEntry]:
    """Writes the lines of packed episodes into files of `limit` lines; the last may be shorter."""
    output = work.output
    episodes = (samples_layout.read_packed(output / entry.path, work.sizes) for entry in packed)
    lines = chain.from_iterable(episode.lines(work.prefix) for episode in episodes)
    for number in count():
        first = list(islice(lines, 1))
        if not first:
            return
        rest = islice(lines, limit - 1)
        yield from write_lines(output, samples_layout.lines_shard_name(number), chain(first, rest))


def _stripped(window: windows_layout.Window) -> windows_layout.Window:
    """The window, trailing whitespace of its instruction removed, as in samples."""
    task = window.task.rstrip()
    if task == window.task:
        return window
    return replace(window, task=task)


def _encode_actions(
    tokenizer: ActionTokenizer,
    profile: profiles.NormalizationProfile,
    windows: Sequence[windows_layout.Window],
) -> EncodedActions:
    """Action ids of each window."""
    with np.errstate(over="ignore"):  # the tokenizer raises on infinity
        chunks = profile.normalize(np.array([window.actions for window in windows]))
    return tokenizer.encode_counted(chunks)


def _codes_by_path(
    codes: CodesFolder, windows: Sequence[windows_layout.Window]
) -> Mapping[str, Array]:
    """Codes uint16 [K] by the path of each future image; raises DataError if they are unusable."""
    stems_of: dict[str, dict[str, str]] = {}
    for window in windows:
        for path in window.future:
            folder, _, name = path.removeprefix(f"{IMAGES_NAME}/").rpartition("/")
            stems_of.setdefault(folder, {})[path] = name.rpartition(".")[0]
    by_path: dict[str, Array] = {}
    for folder, stems in stems_of.items():
        episode = codes.read(folder, stems.values())
        for path, stem in stems.items():
            by_path[path] = episode.codes[episode.row_of[stem]]
    return by_path
