"""Summaries of fields: width, range, constant dimensions; and the fields of a policy.

Legend of shapes: F frames, C dimensions of a field. Source: formats/spartan 2;
formats/lbm 2.2.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.sample import CALIBRATION, MASKS
from vlatool.artifacts.shards.dimensions import Names, dimension_names
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.report import indices_text, range_text, table
from vlatool.transforms.normalize import constant_dimensions

Numbers = tuple[float | None, ...]

# Most fields in the charts of a page; a robot may have far more.
_MAX_FIELDS = 12
_POSE = re.compile("__(poses|grippers)__")
# Maximum number of names of constant dimensions in a table.
_MAX_NAMES = 6


@dataclass(frozen=True)
class FieldSummary:
    """Summary of a field over all episodes or samples; tuples have one entry per dimension.

    Attributes:
        name: Name of the field.
        dtype: Types of its values, `text` for sentences.
        width: C; 0 for text.
        constant: Dimensions that never change.
        min: Smallest values; None for a dimension without a finite value.
        max: Largest values.
        mean: Means.
        std: Standard deviations; empty if they were not computed.
        episodes: Number of episodes that have the field; None if unknown.
        example: A value of a text field.
        names: Names of the dimensions; empty if unknown.
    """

    name: str
    dtype: str
    width: int
    constant: tuple[int, ...] = ()
    min: Numbers = ()
    max: Numbers = ()
    mean: Numbers = ()
    std: Numbers = ()
    episodes: int | None = None
    example: str = ""
    names: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Summary as JSON values."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    @property
    def constant_text(self) -> str:
        """Number and names of the constant dimensions as text."""
        if not self.constant:
            return "-"
        if len(self.constant) >= self.width:
            return "all"
        if not self.names:
            return f"{len(self.constant)} ({indices_text(self.constant)})"
        parts = _names_text([self.names[index] for index in self.constant])
        shown = [*parts[:_MAX_NAMES], *(["..."] if parts[_MAX_NAMES:] else [])]
        return f"{len(self.constant)} ({', '.join(shown)})"

    @property
    def dimensions_text(self) -> str:
        """Names of the dimensions as text."""
        return ", ".join(_names_text(self.names))


class FieldRange:
    """Accumulator of range and mean of a field over episodes; the episodes are not stored."""

    def __init__(self, name: str, values: Array, recorded: Names) -> None:
        self.name = name
        self._recorded = recorded
        self.is_text = values.dtype.kind == "U"
        self.width = 0 if self.is_text else values.shape[1]
        self.episodes = 0
        self._dtypes: dict[str, None] = {}
        self._texts: dict[str, None] = {}
        self._low = np.full(self.width, np.inf)
        self._high = np.full(self.width, -np.inf)
        self._sum = np.zeros(self.width)
        self._count = np.zeros(self.width)

    def add(self, values: Array) -> str:
        """Adds values [F, C], or text [F]; returns a warning about them, or an empty string."""
        self.episodes += 1
        if self.is_text != (values.dtype.kind == "U"):
            return "is text in some episodes and numbers in others"
        if self.is_text:
            self._texts |= dict.fromkeys(np.unique(values).tolist())
            return ""
        if values.shape[1] != self.width:
            return f"is {values.shape[1]} wide, {self.width} in the episodes before"
        self._dtypes[str(values.dtype)] = None
        return self._add_numbers(values.astype(np.float64))

    def info(self) -> FieldSummary:
        """Summary of all values so far."""
        if self.is_text:
            example = next(iter(self._texts), "")
            return FieldSummary(self.name, "text", 0, episodes=self.episodes, example=example)
        mean = self._sum / np.maximum(self._count, 1)
        statistics = {"min": self._low, "max": self._high, "mean": mean}
        return FieldSummary(
            self.name,
            ", ".join(self._dtypes),
            self.width,
            constant=_constant(self.name, statistics),
            min=_numbers(self._low),
            max=_numbers(self._high),
            mean=_numbers(mean),
            episodes=self.episodes,
            names=_known_names(self.name, self.width, self._recorded),
        )

    def _add_numbers(self, values: Array) -> str:
        finite = np.isfinite(values)
        self._low = np.minimum(self._low, np.where(finite, values, np.inf).min(0))
        self._high = np.maximum(self._high, np.where(finite, values, -np.inf).max(0))
        self._sum += np.where(finite, values, 0).sum(0)
        self._count += finite.sum(0)
        missing = int(values.size - finite.sum())
        return f"has {missing} values that are not finite" if missing else ""


def summary_of_statistics(
    name: str, entry: Mapping[str, Any], recorded: Names
) -> FieldSummary | None:
    """Summary of a field from its entry in stats.json; None if that is broken."""
    try:
        mean = np.asarray(entry["mean"], np.float64)
        values = {key: np.asarray(entry[key], np.float64) for key in ("min", "max")}
        std = np.broadcast_to(np.asarray(entry["std"], np.float64), mean.shape)
    except (KeyError, TypeError, ValueError):
        return None
    if mean.ndim != 1 or any(value.shape != mean.shape for value in values.values()):
        return None
    return FieldSummary(
        name,
        "",
        len(mean),
        constant=_constant(name, {**values, "mean": mean}),
        min=_numbers(values["min"]),
        max=_numbers(values["max"]),
        mean=_numbers(mean),
        std=_numbers(std),
        names=_known_names(name, len(mean), recorded),
    )


def lowdim_columns(arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Arrays that are fields of numbers with `rows` rows, as [rows, C]."""
    return {
        name: values.reshape(rows, -1)
        for name, values in arrays.items()
        if values.dtype.kind in "fiu"
        and values.ndim in (1, 2)
        and len(values) == rows
        and values.size > 0
        and not name.startswith((*CALIBRATION, "intrinsics."))
        and name not in MASKS
    }


def policy_fields(
    known: Mapping[str, Array], actions: Sequence[str], proprioception: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Action and proprioception fields for charts, at most twelve of each.

    Args:
        known: Fields to select from.
        actions: Configured names; a missing `_relative` field is replaced by its absolute field.
        proprioception: Configured names.
    """
    names = list(known)
    chosen = [
        _configured(configured, names) or _named(prefix, names)
        for configured, prefix in ((actions, "robot__action"), (proprioception, "robot__actual"))
    ]
    if not any(chosen):
        chosen[0] = [name for name in names if "action" in name]
        chosen[1] = [name for name in names if name not in chosen[0]]
    first, second = ({name: known[name] for name in group[:_MAX_FIELDS]} for group in chosen)
    return first, second


def unit(field: str) -> str:
    """Unit of a field if the format defines one, else an empty string."""
    plain = field.removesuffix("_relative")
    is_length = plain.startswith("robot__") and (
        plain.endswith("__xyz") or ("__grippers__" in plain and plain.endswith("panda_hand"))
    )
    return "m" if is_length else ""


def source_field_table(fields: Sequence[FieldSummary]) -> str:
    """Table of fields of raw episodes, one row per field."""
    header = ("name", "width", "dtype", "range", "constant dimensions")
    rows = (
        (
            field.name,
            field.width or "-",
            field.dtype,
            f'"{field.example}"' if field.dtype == "text" else _range(field),
            field.constant_text,
        )
        for field in fields
    )
    return table("Fields", header, rows)


def statistics_field_table(fields: Sequence[FieldSummary]) -> str:
    """Table of fields of training samples, one row per field."""
    header = ("name", "width", "range", "mean", "std", "constant dimensions")
    rows = (
        (
            field.name,
            field.width,
            _range(field),
            range_text(field.mean),
            range_text(field.std),
            field.constant_text,
        )
        for field in fields
    )
    return table("Fields", header, rows)


def dimensions_table(fields: Sequence[FieldSummary]) -> str:
    """Table of the recorded names of dimensions, one row per field."""
    rows = [
        (field.name, field.dimensions_text)
        for field in fields
        if field.names and list(field.names) != dimension_names(field.name, field.width, {})
    ]
    return table("Dimensions", ("field", "names"), rows)


def _names_text(names: Sequence[str]) -> list[str]:
    """Names of dimensions; consecutive numbers of a group become a range: `left_arm.0-6`."""
    runs: list[tuple[str, list[int]]] = []
    for name in names:
        group, _, number = name.rpartition(".")
        index = int(number) if group and number.isdecimal() else -1
        if index > 0 and runs and runs[-1][0] == group and runs[-1][1][-1] == index - 1:
            runs[-1][1].append(index)
        else:
            runs.append((group, [index]) if index >= 0 else (name, []))
    return [
        f"{group}.{indices[0]}-{indices[-1]}"
        if indices[1:]
        else ".".join([group, *map(str, indices)])
        for group, indices in runs
    ]


def _known_names(name: str, width: int, recorded: Names) -> tuple[str, ...]:
    """Names of the dimensions; empty if they are just numbers."""
    names = tuple(dimension_names(name, width, recorded))
    return () if names == tuple(map(str, range(width))) else names


def _range(field: FieldSummary) -> str:
    return range_text([*field.min, *field.max])


def _constant(name: str, statistics: Mapping[str, Array]) -> tuple[int, ...]:
    try:
        return tuple(np.flatnonzero(constant_dimensions(statistics, name)).tolist())
    except DataError:  # a range that is not finite has no constant dimensions
        return ()


def _numbers(values: Array) -> Numbers:
    return tuple(value if np.isfinite(value) else None for value in values.tolist())


def _configured(configured: Sequence[str], names: Sequence[str]) -> list[str]:
    known = set(names)
    candidates = (
        name if name in known else name.removesuffix("_relative") for name in map(str, configured)
    )
    return [name for name in dict.fromkeys(candidates) if name in known]


def _named(prefix: str, names: Sequence[str]) -> list[str]:
    """Fields whose names start with `prefix`, poses and grippers first."""
    fields = [name for name in names if name.startswith(prefix)]
    return sorted(fields, key=lambda name: name.endswith("_relative") or not _POSE.search(name))
