"""RLDS data sets of TFDS, without TensorFlow. Source: formats/rlds 1 to 4."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlatool.artifacts import tfrecord
from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes
from vlatool.sources import base
from vlatool.sources.frames import SingleImages
from vlatool.sources.language import first_text, kind_of_name, recorded_language
from vlatool.sources.rlds.rules import RLDS, StepFeature, features_of
from vlatool.sources.rules import distinct_recordings
from vlatool.storage.byte_ranges import ByteRange
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import can_list

_FEATURES, _INFO = "features.json", "dataset_info.json"
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d{5})-of-(?P<of>\d{5})")
_MEASURED = re.compile(r"state|proprio|joint|eef|ee_|gripper|cartesian|pose")
# Flags that mark the first and the last step, which the order of the steps says.
_FLAGS = ("is_first", "is_last", "is_terminal")


class RldsConfig(ConfigModel):
    """Options of RLDS data sets. What they do not store is given here."""

    fps: float | None = option(None, "Frames per second.", gt=0)
    instruction: str | None = option(None, "Instruction of all episodes; null: that of the data.")
    split: str | None = option(None, "Split, such as train; null: all.")


class StepImages(SingleImages):
    """Encoded images of the steps of an episode, in memory."""

    def __init__(self, path: Path, place: str, files: Sequence[memoryview]) -> None:
        self._path, self._place, self._files = path, place, files

    def __len__(self) -> int:
        return len(self._files)

    def encoded(self, index: int) -> bytes:
        return bytes(self._files[index])

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self._place}: frame {index}"
        return RLDS.error("unreadable", self._path, place, reason, frame=index)


class RldsReader(base.FormatReader):
    """Reader of RLDS; a source is a folder with features.json and TFRecords, or one above it."""

    Config: ClassVar[type[ConfigModel]] = RldsConfig
    findings: ClassVar[FindingCodes | None] = RLDS
    config: RldsConfig

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every record of the shards; reads the headers of records."""
        findings: list[Finding] = []
        searched = f"{_FEATURES} beside NAME-SPLIT.tfrecord files"
        folders = distinct_recordings(sources, _folders, searched, findings)
        refs = [
            ref
            for path, source in folders
            for ref in self._refs(path, source, findings, is_only=len(folders) == 1)
        ]
        self.source_findings = findings
        yield from refs

    def _refs(
        self, folder: Path, source: Path, findings: list[Finding], *, is_only: bool
    ) -> Iterator[EpisodeRef]:
        shards = _shards(folder, self.config.split)
        lengths = _shard_lengths(folder)
        findings += _lacking(folder, shards, lengths, self.config.split)
        name, number = base.id_part(next(iter(shards))[0].name.partition("-")[0]), 0
        for path, split, shard in shards:
            try:
                spans = list(tfrecord.record_spans(path))
            except tfrecord.TfRecordError as error:
                raise RLDS.error(error.code, path, str(error)) from error
            declared = lengths.get(split, ())
            if shard < len(declared) and declared[shard] != len(spans):
                reason = f"has {counted(len(spans), 'record')}, {_INFO} says {declared[shard]}"
                findings.append(RLDS.at("record_count", path, reason))
            for span in spans:
                yield EpisodeRef(
                    id=f"{name}_{base.id_part(split)}_{number:06d}",
                    path=path,
                    source=str(source),
                    number=number if is_only else None,
                    files=(folder / _FEATURES,),
                    extras={"span": (span.start, span.stop), "split": split},
                )
                number += 1

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras and fields of the first readable episode of each folder; lengths are unknown."""
        reasons: list[VlatoolError] = []
        surveys: dict[Path, Survey] = {}
        for ref in refs:
            if ref.path.parent not in surveys:
                read = base.survey_each(lambda r: base.survey_episode(self.read(r)), [ref], reasons)
                for survey in read:
                    surveys[ref.path.parent] = survey
        merged = base.merge_surveys(surveys.values(), reasons)
        return replace(merged, episodes=len(refs), frames=None)

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; the record is in memory, its images are encoded."""
        features = _features(ref.path.parent / _FEATURES)
        first, stop = ref.extras["span"]
        try:
            parsed = tfrecord.parse_example(tfrecord.read_record(ByteRange(ref.path, first, stop)))
        except tfrecord.TfRecordError as error:
            raise RLDS.error(error.code, ref.path, f"record at byte {first}: {error}") from error
        episode = _Steps(ref, features, parsed)
        lowdim = episode.fields()
        option = self.config.instruction
        language, findings = recorded_language(ref, episode.count, episode.texts(), option)
        actions = tuple(name for name in lowdim if name.split(".")[0] in ("action", "actions"))
        observed = tuple(
            name
            for name in lowdim
            if name.startswith("observation.") and _MEASURED.search(name.rpartition(".")[2])
        )
        unknown = [feature.name for feature in features if feature.kind == "unknown"]
        if unknown:
            findings.append(RLDS("unknown_feature", f"{ref.id}: left out: {', '.join(unknown)}"))
        return Episode(
            id=ref.id,
            task=first_text(language),
            fps=self.config.fps or episode.fps,
            num_frames=episode.count,
            cameras=episode.cameras(),
            lowdim=lowdim,
            language=language[0],
            language_spans=tuple(language[1]),
            action_fields=actions,
            proprioception_fields=observed,
            findings=tuple(findings),
            extras={"split": ref.extras["split"], "source_episode": f"{ref.path.name}:{first}"},
        )


class _Steps:
    """The features of a record as arrays with a row per step."""

    def __init__(
        self,
        ref: EpisodeRef,
        features: Sequence[StepFeature],
        parsed: Mapping[str, "list[memoryview] | Array"],
    ) -> None:
        self._ref, self._parsed = ref, parsed
        self._features = [feature for feature in features if feature.is_step]
        counts = {f.name: self._rows(f) for f in self._features if f.kind != "unknown"}
        self.count = next(iter(counts.values()), 0)
        for name, count in counts.items():
            if count != self.count:
                raise self._error(f"{name} has {count} steps, others {self.count}")
        if not self.count:
            raise RLDS.error("empty_episode", ref.path, f"{ref.id}: has no steps")

    def _rows(self, feature: StepFeature) -> int:
        """Number of steps of a feature, by its length and shape."""
        values = self._parsed.get(feature.name)
        if values is None:
            raise self._error(f"{feature.name} is missing")
        if (feature.kind == "numbers") == isinstance(values, list) and len(values):
            raise self._error(f"{feature.name} is no list of {feature.kind}")
        width = math.prod(feature.shape) if feature.kind == "numbers" else 1
        if width < 1 or len(values) % width:
            raise self._error(
                f"{feature.name} has {len(values)} values, a step {list(feature.shape)}"
            )
        return len(values) // width

    def fields(self) -> dict[str, Array]:
        """Map from field to values [S, C]."""
        fields: dict[str, Array] = {}
        for feature in self._features:
            name = feature.name.removeprefix("steps/")
            if feature.kind == "numbers" and name not in _FLAGS:
                values = np.asarray(self._parsed[feature.name])
                typed = values.astype(feature.dtype) if _is_number(feature.dtype) else values
                fields[name.replace("/", ".")] = typed.reshape(self.count, -1)
        return fields

    def cameras(self) -> dict[str, FrameSource]:
        """Map from camera to its images."""
        cameras: dict[str, FrameSource] = {}
        for feature in self._features:
            if feature.kind == "image" and feature.shape[-1:] in ((3,), ()):
                place = f"{self._ref.id}: {feature.name}"
                rows = self._parsed[feature.name]
                files = rows if isinstance(rows, list) else []
                cameras[feature.name.rpartition("/")[2]] = StepImages(self._ref.path, place, files)
        return cameras

    @property
    def fps(self) -> float:
        """The rate in `episode_metadata/fps`; 0 if it is not there."""
        values = self._parsed.get("episode_metadata/fps", ())
        fps = float(values[0]) if isinstance(values, np.ndarray) and len(values) else 0.0
        return fps if math.isfinite(fps) and fps > 0 else 0.0

    def texts(self) -> dict[str, list[str]]:
        """Map from kind of annotation to the text of each step."""
        texts: dict[str, list[str]] = {}
        for feature in self._features:
            kind = kind_of_name(feature.name.rpartition("/")[2])
            if feature.kind == "text" and kind and kind not in texts:
                rows = self._parsed[feature.name]
                texts[kind] = [bytes(row).decode(errors="replace").strip() for row in rows]
        return texts

    def _error(self, reason: str) -> DataError:
        return RLDS.error("missing_feature", self._ref.path, f"{self._ref.id}: {reason}")


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "fiub"
    except TypeError:
        return False


@lru_cache(maxsize=4)
def _features(path: Path) -> tuple[StepFeature, ...]:
    try:
        features = tuple(features_of(read_json(path)))
    except (DocumentError, ValueError, AttributeError, TypeError) as error:
        raise RLDS.error("broken_features", path, str(error)) from error
    if not any(feature.is_step for feature in features):
        raise RLDS.error("broken_features", path, "has no feature steps")
    return features


def _folders(source: Path) -> list[Path]:
    """Folders with features.json and shards at or below a source, in natural order."""
    if not can_list(source):
        return []
    folders = [
        folder
        for folder, _, files in walk(source)
        if _FEATURES in files and any(map(_SHARD.fullmatch, files))
    ]
    return sorted(folders, key=natural_key)


def _shards(folder: Path, split: str | None) -> list[tuple[Path, str, int]]:
    """(path, split, number) of the shards of a split or of all, in order."""
    matches = filter(None, (_SHARD.fullmatch(path.name) for path in folder.iterdir()))
    shards = sorted((match["split"], int(match["shard"]), match[0]) for match in matches)
    chosen = [(folder / name, of, number) for of, number, name in shards if split in (None, of)]
    if not chosen:
        known = sorted({of for of, _, _ in shards})
        raise DataError.at(
            folder,
            f"no shard is in the split {split!r}",
            hint=f"choose from: {', '.join(known)}",
            code="data.unknown_split",
            known=known,
        )
    return chosen


def _shard_lengths(folder: Path) -> dict[str, tuple[int, ...]]:
    """Number of records of each shard by split, as dataset_info.json says; empty without it."""
    try:
        splits = read_json(folder / _INFO).get("splits") or ()
        return {str(s["name"]): tuple(int(n) for n in s.get("shardLengths", ())) for s in splits}
    except (DocumentError, OSError, AttributeError, TypeError, KeyError, ValueError):
        return {}


def _lacking(
    folder: Path,
    shards: Sequence[tuple[Path, str, int]],
    lengths: Mapping[str, Sequence[int]],
    split: str | None,
) -> Iterator[Finding]:
    """Findings for shards that are missing, and for splits without any file."""
    numbers: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for path, of, number in shards:
        match = _SHARD.fullmatch(path.name)
        numbers.setdefault(of, set()).add(number)
        totals[of] = int(match["of"]) if match else 0
    for of, total in totals.items():
        absent = sorted({*range(total)} - numbers[of])
        if absent:
            reason = f"the split {of} lacks the shards {absent[:6]} of {total}"
            yield RLDS.at("missing_shard", folder, reason)
    for of in lengths:
        if split is None and of not in numbers:
            yield RLDS.at("missing_split", folder, f"the split {of} has no file here")
