"""Findings of RLDS, and the leaves of `features.json`. Source: formats/rlds 3."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlatool.findings import FindingCodes, error, info, warning

_EXCLUDE = "leave the episode out with --exclude"
_AGAIN = f"the file is cut off or damaged: copy it again, or {_EXCLUDE}"
_CHANGE = f"correct features.json or the mapping, or {_EXCLUDE}"

RLDS = FindingCodes(
    "rlds",
    unreadable=error("A file or a record is damaged or cut off.", _AGAIN),
    checksum=error("A record is damaged: its checksum is wrong.", _AGAIN),
    broken_features=error(
        "features.json does not describe episodes with steps.",
        "give the folder of one version of an RLDS data set, such as bridge/1.0.0",
    ),
    missing_feature=error(
        "A record lacks a feature of features.json, or has another type or length.", _CHANGE
    ),
    narrow_type=warning(
        "Values do not fit the dtype in features.json; the stored type is used.",
        "correct the dtype in features.json",
    ),
    not_numeric=error("A feature cannot be used as the mapping says.", _CHANGE),
    length_mismatch=error("The features of an episode have different numbers of steps.", _CHANGE),
    array_record=error(
        "The shards are ArrayRecord files, which vlatool cannot read.",
        "convert the data set to TFRecord: `tfds convert_format` of tensorflow_datasets",
    ),
    missing_shard=error("A shard of a split is missing.", "download the missing files"),
    missing_split=info("dataset_info.json lists a split that has no file here."),
    record_count=error(
        "A shard has another number of records than dataset_info.json says.", _AGAIN
    ),
    too_large=error("A record or a field is too large to be read at once.", _EXCLUDE),
    empty_episode=error("An episode has no steps.", _EXCLUDE),
)


Kind = Literal["numbers", "image", "text", "unknown"]
# Key of a feature to what it holds.
_KINDS: Mapping[str, Kind] = {
    "image": "image",
    "text": "text",
    "tensor": "numbers",
    "classLabel": "numbers",
}


@dataclass(frozen=True)
class StepFeature:
    """A leaf of features.json."""

    name: str  # path with slashes, as in the records
    kind: Kind
    dtype: str = ""
    shape: tuple[int, ...] = ()  # of one step; -1 where it varies

    @property
    def is_step(self) -> bool:
        return self.name.startswith("steps/")


def features_of(document: Any, name: str = "") -> Iterator[StepFeature]:
    """The leaves of a features.json, depth first."""
    if not isinstance(document, Mapping):
        raise TypeError(f"{name or 'the root'} is no feature")
    members = document.get("featuresDict", {}).get("features")
    inner = document.get("sequence") or document.get("dataset")
    if isinstance(members, Mapping):
        for key, member in members.items():
            yield from features_of(member, f"{name}/{key}".lstrip("/"))
    elif isinstance(inner, Mapping) and name == "steps":
        yield from features_of(inner.get("feature"), name)
    else:
        yield _leaf(document, name)


def _leaf(document: Mapping[str, Any], name: str) -> StepFeature:
    for key, kind in _KINDS.items():
        if key not in document:
            continue
        facts = document[key] or {}
        shape = tuple(int(side) for side in (facts.get("shape") or {}).get("dimensions") or ())
        dtype = str(facts.get("dtype") or ("int64" if key == "classLabel" else ""))
        if kind == "numbers" and dtype == "string":
            return StepFeature(name, "text")
        if kind == "numbers" and facts.get("encoding", "none") not in ("none", ""):
            return StepFeature(name, "unknown", dtype, shape)
        return StepFeature(name, kind, dtype, shape)
    return StepFeature(name, "unknown")
