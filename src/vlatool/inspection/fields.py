"""What is known of a low-dimensional field: width, range, which dimensions never change, its use.

Legend of shapes: F frames, S rows of any kind, C channels of a field. Source: formats/spartan 2;
formats/lbm 2.2.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.dimensions import Names, dimension_names
from vlatool.artifacts.sample import CALIBRATION, MASKS
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.report import indices_text, range_text, table
from vlatool.transforms.normalize import constant_dimensions

Numbers = tuple[float | None, ...]

# A page that draws every field of a robot is not read.
_MOST_FIELDS = 12
_POSE = re.compile("__(poses|grippers)__")
# Of the constant dimensions, in a table.
_MOST_NAMES = 6


@dataclass(frozen=True)
class FieldSummary:
    """One field over all episodes or samples; tuples have one entry per dimension.

    Attributes:
        name: The field.
        dtype: Its types, `text` for sentences.
        width: C; 0 for text.
        constant: Dimensions that never change.
        min: Smallest values; None where there is none.
        max: Largest values.
        mean: Means.
        std: Standard deviations; empty where they were not computed.
        episodes: How many episodes have it; None where that is not known.
        example: A value of a text field.
        names: Of the dimensions, where they are known.
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
        """The facts for programs."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    @property
    def constant_text(self) -> str:
        """How many dimensions are constant, and which."""
        if not self.constant:
            return "-"
        if len(self.constant) >= self.width:
            return "all"
        if not self.names:
            return f"{len(self.constant)} ({indices_text(self.constant)})"
        parts = _names_text([self.names[at] for at in self.constant])
        shown = [*parts[:_MOST_NAMES], *(["..."] if parts[_MOST_NAMES:] else [])]
        return f"{len(self.constant)} ({', '.join(shown)})"

    @property
    def dimensions_text(self) -> str:
        """What the dimensions are called."""
        return ", ".join(_names_text(self.names))


class FieldRange:
    """Range and mean of a field while its episodes pass by; the episodes are not kept."""

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
        """Takes in [F, C], or text [F]; returns what is odd about it, else nothing."""
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
        """What was seen."""
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
    """The facts in an entry of stats.json; None where it does not hold them."""
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
    """The fields of numbers with `rows` rows among some arrays, as [rows, C]."""
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
    """The action and the proprioception fields to draw, at most twelve of each.

    Args:
        known: Fields that are there.
        actions: Configured names; a `_relative` one stands for its field where that is missing.
        proprioception: Configured names.
    """
    names = list(known)
    chosen = [
        _configured(wanted, names) or _named(prefix, names)
        for wanted, prefix in ((actions, "robot__action"), (proprioception, "robot__actual"))
    ]
    if not any(chosen):
        chosen[0] = [name for name in names if "action" in name]
        chosen[1] = [name for name in names if name not in chosen[0]]
    first, second = ({name: known[name] for name in some[:_MOST_FIELDS]} for some in chosen)
    return first, second


def unit(field: str) -> str:
    """The unit where the format fixes one."""
    plain = field.removesuffix("_relative")
    is_length = plain.startswith("robot__") and (
        plain.endswith("__xyz") or ("__grippers__" in plain and plain.endswith("panda_hand"))
    )
    return "m" if is_length else ""


def source_field_table(fields: Sequence[FieldSummary]) -> str:
    """Fields of raw episodes, one row each."""
    header = ("name", "width", "dtype", "range", "constant dimensions")
    rows = (
        (
            field.name,
            field.width or "-",
            field.dtype,
            f'"{field.example}"' if field.dtype == "text" else _extremes(field),
            field.constant_text,
        )
        for field in fields
    )
    return table("Fields", header, rows)


def statistics_field_table(fields: Sequence[FieldSummary]) -> str:
    """Fields of training samples, one row each."""
    header = ("name", "width", "range", "mean", "std", "constant dimensions")
    rows = (
        (
            field.name,
            field.width,
            _extremes(field),
            range_text(field.mean),
            range_text(field.std),
            field.constant_text,
        )
        for field in fields
    )
    return table("Fields", header, rows)


def dimensions_table(fields: Sequence[FieldSummary]) -> str:
    """What a recording calls the dimensions of its fields, one row each."""
    rows = [
        (field.name, field.dimensions_text)
        for field in fields
        if field.names and list(field.names) != dimension_names(field.name, field.width, {})
    ]
    return table("Dimensions", ("field", "names"), rows)


def _names_text(names: Sequence[str]) -> list[str]:
    """Names of dimensions; those of a group that count on are taken together: `left_arm.0-6`."""
    runs: list[tuple[str, list[int]]] = []
    for name in names:
        group, _, number = name.rpartition(".")
        at = int(number) if group and number.isdecimal() else -1
        if at > 0 and runs and runs[-1][0] == group and runs[-1][1][-1] == at - 1:
            runs[-1][1].append(at)
        else:
            runs.append((group, [at]) if at >= 0 else (name, []))
    return [
        f"{stem}.{inner[0]}-{inner[-1]}" if inner[1:] else ".".join([stem, *map(str, inner)])
        for stem, inner in runs
    ]


def _known_names(name: str, width: int, recorded: Names) -> tuple[str, ...]:
    """The names of the dimensions; none where they are but numbers."""
    names = tuple(dimension_names(name, width, recorded))
    return () if names == tuple(map(str, range(width))) else names


def _extremes(field: FieldSummary) -> str:
    return range_text([*field.min, *field.max])


def _constant(name: str, statistics: Mapping[str, Array]) -> tuple[int, ...]:
    try:
        return tuple(np.flatnonzero(constant_dimensions(statistics, name)).tolist())
    except DataError:  # a range that is not finite is shown as it is
        return ()


def _numbers(values: Array) -> Numbers:
    return tuple(value if np.isfinite(value) else None for value in values.tolist())


def _configured(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    known = set(names)
    candidates = (
        name if name in known else name.removesuffix("_relative") for name in map(str, wanted)
    )
    return [name for name in dict.fromkeys(candidates) if name in known]


def _named(prefix: str, names: Sequence[str]) -> list[str]:
    """Fields by the beginning of their name, poses and grippers first."""
    found = [name for name in names if name.startswith(prefix)]
    return sorted(found, key=lambda name: name.endswith("_relative") or not _POSE.search(name))
