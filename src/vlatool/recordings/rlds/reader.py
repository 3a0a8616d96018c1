"""RLDS data sets of TFDS, without TensorFlow. Source: formats/rlds 1 to 4.

A data set is a folder with `features.json` and shards of TFRecord; each record is an episode. Its
features have the values of all steps one after the other, under names such as `steps/action`.
`discover` reads the headers of records; a record is parsed when its episode is read.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes
from vlatool.media import limits, tfrecord
from vlatool.recordings import base
from vlatool.recordings.inventory import Stored, encoded_thing, image_size
from vlatool.recordings.mapping import MAPPING, RecordingMapping
from vlatool.recordings.plan import EpisodePlan, PlannedImages, plan_by_structure
from vlatool.recordings.planned import PlannedEpisode, PlannedFrames, PlannedReader
from vlatool.recordings.propose import Clues, proposed_mapping
from vlatool.recordings.rlds.check import RLDS, StepFeature, features_of
from vlatool.recordings.rules import distinct_recordings
from vlatool.storage.byte_ranges import ByteRange
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.tree import natural_key
from vlatool.transforms.hold_out import split_of

_FEATURES = "features.json"
_INFO = "dataset_info.json"
_FPS = "episode_metadata/fps"
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d{5})-of-(?P<of>\d{5})")
_MEASURED = re.compile(r"state|proprio|joint|eef|ee_|gripper|cartesian|pose")
_ODD = (ValueError, AttributeError, TypeError)  # what values of other types raise
# Flags that mark the first and the last step, which the order of the steps says.
_FLAGS = ("is_first", "is_last", "is_terminal")
_DAMAGED = -1  # end of the span of a record whose header is damaged
_CUT_HINT = "the file is cut off or damaged: copy it again, or exclude this episode with --exclude"


class RldsConfig(ConfigModel):
    """Options of the format `rlds`; they add what your data sets do not store."""

    location_keys: ClassVar[frozenset[str]] = frozenset({"mapping"})

    fps: float | None = option(
        None, "Frames per second of the recordings.", ge=limits.RATES[0], le=limits.RATES[1]
    )
    instruction: str | None = option(
        None, "Instruction of all episodes; null uses the instruction in the data."
    )
    mapping: str | None = option(None, MAPPING)
    split: str | None = option(None, "Read only this split, such as train; null reads all.")


class StepImages(PlannedFrames):
    """Encoded images of the steps of an episode, in memory."""

    def __init__(
        self, path: Path, planned: PlannedImages, files: Sequence[memoryview] | Array
    ) -> None:
        self._path = path
        self.planned = planned
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size(self) -> tuple[int, int]:
        if isinstance(self._files, np.ndarray):
            return image_size(self._files.shape[1:])
        thing = encoded_thing("", bytes(self._files[0]))
        if thing.kind == "png" and self.planned.decision.role != "camera":
            return thing.shape[0], thing.shape[1]
        return super().size

    def row(self, index: int) -> bytes | Array:
        row = self._files[index]
        return row if isinstance(row, np.ndarray) else bytes(row)

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self.planned.path}: frame {index}"
        return RLDS.error("unreadable", self._path, place, reason, frame=index)


class RldsReader(PlannedReader):
    """Reader of RLDS; a source is a folder with features.json and TFRecords, or one above it."""

    Config: ClassVar[type[ConfigModel]] = RldsConfig
    findings: ClassVar[FindingCodes | None] = RLDS
    config: RldsConfig

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every record of the shards; reads the headers of records."""
        findings: list[Finding] = []
        searched = f"{_FEATURES} beside NAME-SPLIT.tfrecord files"
        folders = distinct_recordings(sources, _folders, searched, findings)
        refs: list[EpisodeRef] = []
        used: dict[str, int] = {}
        for path, source in folders:
            for ref in self._refs(path, source, findings, used):
                refs.append(ref if len(folders) == 1 else replace(ref, number=None))
        if not refs:
            raise base.no_episodes(folders[0][0], "records in its shards, and they are all empty")
        if all(ref.extras["span"].stop == _DAMAGED for ref in refs):
            self._episode(refs[0])  # raises the error of the first shard
        self.source_findings = findings
        yield from self.with_decisions(refs)

    def _refs(
        self, folder: Path, source: Path, findings: list[Finding], used: dict[str, int]
    ) -> Iterator[EpisodeRef]:
        shards = _shards(folder, self.config.split)
        lengths = _shard_lengths(folder)
        findings += _lacking(folder, shards)
        present = {shard.split for shard in shards}
        for split in lengths:
            if self.config.split is None and split not in present:
                reason = f"the split {split} of {_INFO} has no file here"
                findings.append(RLDS.at("missing_split", folder, reason))
        name = base.id_part(shards[0].path.name.partition("-")[0])
        if name in used:  # another version, or another set of this name
            name = base.id_part(f"{folder.parent.name}_{folder.name}")
        name = base.unused_id(name, used)
        number = 0
        for shard in shards:
            spans = _spans(shard.path)
            declared = lengths.get(shard.split, ())
            if shard.number < len(declared) and declared[shard.number] != len(spans):
                records = counted(len(spans), "record")
                reason = f"has {records}, but {_INFO} says {declared[shard.number]}"
                findings.append(RLDS.at("record_count", shard.path, reason))
            if number + len(spans) > limits.MOST_EPISODES:
                reason = f"the data set has more than {limits.MOST_EPISODES:,} records"
                raise RLDS.error("too_large", shard.path, reason, hint="choose one with --split")
            for span in spans:
                yield EpisodeRef(
                    id=f"{name}_{base.id_part(shard.split)}_{number:06d}",
                    path=shard.path,
                    source=str(source),
                    number=number,
                    files=(folder / _FEATURES,),
                    extras={"span": span, "split": shard.split},
                    split=split_of(shard.split),
                )
                number += 1

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras and fields of the first readable episode of each folder; lengths are unknown."""
        reasons: list[VlatoolError] = []
        surveys: dict[Path, Survey] = {}
        for ref in refs:
            if ref.path.parent not in surveys:
                for survey in base.survey_each(self.survey_episode, [ref], reasons):
                    surveys[ref.path.parent] = survey
        merged = base.merge_surveys(surveys.values(), reasons)
        return replace(merged, episodes=len(refs), frames=None)

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; the record is in memory, its images are encoded."""
        opened = self._episode(ref)
        start = ref.extras["span"].start
        extras = {"split": ref.extras["split"], "source_episode": f"{ref.path.name}:{start}"}
        episode = opened.episode()
        return replace(episode, extras=extras, findings=(*episode.findings, *opened.findings))

    def opened(self, ref: EpisodeRef) -> "AbstractContextManager[RldsEpisode]":
        return nullcontext(self._episode(ref))

    def _episode(self, ref: EpisodeRef) -> "RldsEpisode":
        features = _features(ref.path.parent / _FEATURES)
        span: _Span = ref.extras["span"]
        place = f"record at byte {span.start}: "
        hint = ""
        try:
            if span.stop == _DAMAGED:
                place = ""
                hint = _CUT_HINT
                next(tfrecord.record_spans(ref.path, span.start), None)
            parsed = tfrecord.parse_example(
                tfrecord.read_record(ByteRange(ref.path, span.start, span.stop))
            )
        except tfrecord.TfRecordError as error:
            raise RLDS.error(error.code, ref.path, f"{place}{error}", hint=hint) from error
        return RldsEpisode(ref, features, parsed, self.mapping, self.config)

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first record, with questions as comments."""
        reader = RldsReader(RldsConfig())
        if not _folders(source):
            return None
        ref = next(iter(reader.discover([source])))
        opened = reader._episode(ref)
        values: dict[str, Any] = {}
        if opened.stored_fps():
            values[_FPS] = opened.stored_fps()
        return proposed_mapping(Clues([*opened.things.values()], values, opened.numbers))


class RldsEpisode(PlannedEpisode):
    """An episode of a record."""

    codes: ClassVar[FindingCodes] = RLDS
    missing: ClassVar[str] = "missing_feature"

    def __init__(
        self,
        ref: EpisodeRef,
        features: Sequence[StepFeature],
        parsed: Mapping[str, "list[memoryview] | Array"],
        mapping: RecordingMapping | None,
        config: RldsConfig,
    ) -> None:
        super().__init__(ref, mapping, config, ref.id)
        self._features = {_path_of(feature.name): feature for feature in features}
        self._parsed = {_path_of(name): values for name, values in parsed.items()}
        self._dtypes: dict[str, str] = {}  # of numbers
        self.findings: list[Finding] = []
        stored = [self._thing(path, feature) for path, feature in self._features.items()]
        steps: int | None = None
        for thing in stored:
            if thing.rows is None or not self._features[thing.path].is_step:
                continue
            steps = thing.rows if steps is None else steps
            if thing.rows != steps:
                reason = f"{thing.path} has {thing.rows} steps, other features have {steps}"
                raise self.error("missing_feature", reason)
        if not steps:
            raise RLDS.error("empty_episode", ref.path, f"{ref.id}: has no steps")
        for path in self._parsed:
            if path not in self._features:
                stored.append(Stored(path, "other", note="not in features.json"))
        self.make_plan(stored)

    def _thing(self, path: str, feature: StepFeature) -> Stored:
        """What a feature stores; DataError if the record contradicts its declaration."""
        if feature.kind == "unknown":
            return Stored(path, "other", note="neither numbers nor images nor text, such as sound")
        values = self._parsed.get(path)
        if values is None:
            if not feature.is_step:
                return Stored(path, "other", rows=0, note="missing in the record")
            raise self.error("missing_feature", f"{path} is missing")
        if (feature.kind == "numbers") == isinstance(values, list) and len(values):
            raise self.error("missing_feature", f"{path} is no list of {feature.kind}")
        is_success = not feature.is_step and path.rpartition("/")[2] in ("success", "is_success")
        if is_success and len(values) == 1 and feature.kind in ("text", "numbers"):
            return Stored(path, "other", role="success")
        if feature.kind == "text":
            return Stored(path, "text", rows=len(values) if feature.is_step else None)
        if feature.kind == "image":
            if not len(values) or not isinstance(values, list):
                return Stored(path, "other", rows=0, note="it is empty")
            thing = encoded_thing(path, bytes(values[0]), len(values))
            if feature.is_step:
                return thing
            return replace(thing, rows=None, role="left_out", note="one image per episode")
        return self._numeric_thing(path, feature, np.asarray(values))

    def _numeric_thing(self, path: str, feature: StepFeature, values: Array) -> Stored:
        """Numbers of all steps, which the record has one after the other."""
        if any(side < 0 for side in feature.shape):
            return Stored(path, "other", note=f"values of a varying shape {list(feature.shape)}")
        width = math.prod(feature.shape)
        if width < 1 or len(values) % width:
            shape = list(feature.shape)
            raise self.error("missing_feature", f"{path}: {len(values)} values, not steps {shape}")
        if not feature.is_step:
            return Stored(path, "other", note="a single value for the whole episode")
        self._dtypes[path] = values.dtype.name
        if _is_number(feature.dtype):
            if _fits(values, feature.dtype):
                self._dtypes[path] = feature.dtype
            else:
                text = f"{path}: features.json says {feature.dtype}, but it holds {values.dtype}"
                self.findings.append(RLDS("narrow_type", f"{self.ref.id}: {text}", field=path))
        rows = len(values) // width

        def look() -> Array:
            return self.numbers(path).reshape(rows, *feature.shape)[[0, rows // 2, rows - 1]]

        return Stored(
            path,
            "array",
            feature.shape,
            self._dtypes[path],
            rows,
            role="time" if path in _FLAGS else None,
            look=look,
        )

    def plan_by_structure(self, stored: Sequence[Stored]) -> EpisodePlan:
        plan = plan_by_structure(stored, self.known)
        actions: list[str] = []
        observed: list[str] = []
        for name in plan.fields:
            if name.split(".")[0] in ("action", "actions"):
                actions.append(name)
            elif name.startswith("observation.") and _MEASURED.search(name.rpartition(".")[2]):
                observed.append(name)
        plan.actions = tuple(actions)
        plan.observed = tuple(observed)
        return plan

    def name_of(self, reference: str) -> str:
        return _path_of(reference)

    def open_images(self, planned: PlannedImages) -> FrameSource:
        values = self._parsed[planned.path]
        if isinstance(values, list):
            return StepImages(self.ref.path, planned, values)
        rows = self.numbers(planned.path).reshape(-1, *self._features[planned.path].shape)
        return StepImages(self.ref.path, planned, rows)

    def numbers(self, path: str) -> Array:
        values = np.asarray(self._parsed[path])
        limits.check_numbers(RLDS, self.ref.path, f"{self.ref.id}: {path}", len(values))
        typed = values.astype(self._dtypes.get(path, values.dtype), copy=False)
        return typed.reshape(-1, max(1, math.prod(self._features[path].shape)))

    def texts_of(self, name: str, count: int) -> list[str]:
        rows = self._values(name)
        return [base.text_of(row).strip() for row in rows[:count]]

    def value_of(self, name: str) -> Any:
        value = self._values(name)[-1]
        return bytes(value).decode() if isinstance(value, memoryview) else value.item()

    def _values(self, name: str) -> "list[memoryview] | Array":
        path = self.find_stored(name).path
        values = self._parsed.get(path, [])
        if not len(values):
            raise self.error("missing_feature", f"{path} is missing", field=path)
        return values

    def stored_fps(self) -> float | None:
        values = self._parsed.get(_FPS, [])
        return limits.possible_rate(values[0] if len(values) else None)


def _path_of(name: str) -> str:
    return name.removeprefix("steps/")


def _fits(values: Array, dtype: str) -> bool:
    """True if a type holds numbers as they are."""
    with np.errstate(invalid="ignore", over="ignore"):
        typed = values.astype(dtype).astype(values.dtype)
    return np.array_equal(typed, values, equal_nan=values.dtype.kind == "f")


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "fiub"
    except TypeError:
        return False


@lru_cache(maxsize=4)
def _features(path: Path) -> tuple[StepFeature, ...]:
    try:
        features = tuple(features_of(read_json(path)))
    except (DocumentError, OSError, ArithmeticError, *_ODD) as error:
        raise RLDS.error("broken_features", path, str(error)) from error
    if not any(feature.is_step for feature in features):
        raise RLDS.error("broken_features", path, "has no feature steps")
    return features


def _folders(source: Path) -> list[Path]:
    """Folders with features.json and shards at or below a source, in natural order.

    Raises DataError for shards of ArrayRecord.
    """
    folders: list[Path] = []
    for folder, _, files in base.walk_source(source):
        if _FEATURES not in files:
            continue
        if any(_SHARD.fullmatch(name) for name in files):
            folders.append(folder)
        elif any(".array_record-" in name for name in files):
            raise RLDS.error("array_record", folder, "its shards are ArrayRecord, not TFRecord")
    return sorted(folders, key=natural_key)


class _Shard(NamedTuple):
    """A file of records; sorted by split and number."""

    split: str
    number: int
    path: Path
    of: int  # number of shards of the split


def _shards(folder: Path, split: str | None) -> list[_Shard]:
    """The shards of a split or of all, in order."""
    shards: list[_Shard] = []
    for path in folder.iterdir():
        match = _SHARD.fullmatch(path.name)
        if match is not None:
            shards.append(_Shard(match["split"], int(match["shard"]), path, int(match["of"])))
    shards.sort()
    of_split = [shard for shard in shards if split in (None, shard.split)]
    if not of_split:
        known = sorted({shard.split for shard in shards})
        raise DataError.at(
            folder,
            f"the split {split!r} has no shards",
            hint=f"choose from: {', '.join(known)}",
            code="data.unknown_field",
            known=known,
        )
    return of_split


def _shard_lengths(folder: Path) -> dict[str, tuple[int, ...]]:
    """Number of records of each shard by split, as dataset_info.json says; empty without it."""
    lengths: dict[str, tuple[int, ...]] = {}
    try:
        for split in read_json(folder / _INFO).get("splits") or ():
            lengths[str(split["name"])] = tuple(map(int, split.get("shardLengths", ())))
    except (DocumentError, OSError, ArithmeticError, LookupError, *_ODD):
        return {}
    return lengths


def _lacking(folder: Path, shards: Sequence[_Shard]) -> Iterator[Finding]:
    """Findings for shards that are missing."""
    numbers: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for shard in shards:
        numbers.setdefault(shard.split, set()).add(shard.number)
        totals[shard.split] = shard.of
    for split, total in totals.items():
        absent = sorted(set(range(total)) - numbers[split])
        if absent:
            of = counted(total, "shard")
            reason = f"the split {split} has {of}; missing here: {absent[:6]}"
            yield RLDS.at("missing_shard", folder, reason)


class _Span(NamedTuple):
    """Bytes of a record in its shard."""

    start: int
    stop: int  # _DAMAGED if its header is damaged


def _spans(path: Path) -> list[_Span]:
    """Spans of the records of a shard."""
    spans: list[_Span] = []
    start: int | None = 0
    while start is not None:
        try:
            for span in tfrecord.record_spans(path, start):
                spans.append(_Span(span.start, span.stop))
            return spans
        except tfrecord.TfRecordError as error:
            spans.append(_Span(error.start, _DAMAGED))
            start = tfrecord.next_record(path, error.start + 1) if path.is_file() else None
    return spans
