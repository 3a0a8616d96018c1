"""Fields of numbers in reports: summaries, and their choice for charts.

Legend of shapes: F frames, S positions in time (frames of an episode, steps of a window), C
dimensions of a field.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.media.tar_sample import CALIBRATION, MASKS
from vlatool.report.charts import FieldValues
from vlatool.report.facts import Table
from vlatool.report.poses import EndEffectorTrack
from vlatool.report.text import indices_text, range_text
from vlatool.transforms.normalize import constant_dimensions

Names = Mapping[str, Sequence[str]]

DIMENSION_NAMES = "dimension_names"

_RELATIVE = "_relative"
_FIXED: Sequence[tuple[re.Pattern[str], Sequence[str]]] = (
    (re.compile(r"xyz$"), ("x", "y", "z")),
    (re.compile(r"rot_6d$"), ("r11", "r12", "r13", "r21", "r22", "r23")),
    (re.compile(r"^robot__.*__joint_.*::panda$"), [f"joint_{number}" for number in range(1, 8)]),
)


def recorded_names(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Dimension names in the options of training data; malformed entries are skipped."""
    stored = options.get(DIMENSION_NAMES)
    if not isinstance(stored, Mapping):
        return {}
    recorded: dict[str, list[str]] = {}
    for field, names in stored.items():
        if isinstance(names, list):
            recorded[str(field)] = [str(name) for name in names]
    return recorded


def dimension_names(field: str, width: int, recorded: Names) -> list[str]:
    """Names of the `width` dimensions of a field; numbers if no names are known."""
    plain = field.removesuffix(_RELATIVE)
    for names in (recorded.get(field, ()), recorded.get(plain, ())):
        if len(names) == width:
            return list(names)
    for pattern, names in _FIXED:
        if len(names) == width and pattern.search(plain):
            return list(names)
    return [str(number) for number in range(width)]


def dimension_label(field: str, dimension: int, width: int, recorded: Names) -> str:
    """Label of a dimension: `action: left_arm.3`, or `action[3]` if it has no name."""
    name = dimension_names(field, width, recorded)[dimension]
    if name == str(dimension):
        return field if width == 1 else f"{field}[{name}]"
    return f"{field}: {name}"


def unit(field: str) -> str:
    """Unit of a field if the format defines one, else an empty string."""
    plain = field.removesuffix(_RELATIVE)
    is_width = "__grippers__" in plain and plain.endswith("panda_hand")
    is_length = plain.endswith("__xyz") or is_width
    return "m" if is_length and plain.startswith("robot__") else ""


Numbers = tuple[float | None, ...]

# Most fields in the charts of a page; a robot may have far more.
_MAX_FIELDS = 12
_POSE = re.compile("__(poses|grippers)__")
_POSITION = re.compile(r"^robot__actual__poses__(?P<arm>.+)__xyz$")
_ARMS = 3
# Maximum number of names of constant dimensions in a table.
_MAX_NAMES = 6


@dataclass(frozen=True)
class FieldSummary:
    """Summary of a field over all episodes or samples; tuples have one entry per dimension."""

    name: str
    dtype: str = ""  # types of its values, `text` for sentences
    width: int = 0  # C; 0 for text
    constant: tuple[int, ...] = ()  # dimensions that never change
    min: Numbers = ()  # smallest values; None for a dimension without a finite value
    max: Numbers = ()  # largest values
    mean: Numbers = ()
    std: Numbers = ()  # standard deviations; empty if they were not computed
    episodes: int | None = None  # number of episodes that have the field; None if unknown
    example: str = ""  # A value of a text field
    names: tuple[str, ...] = ()  # names of the dimensions; empty if unknown

    def document(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    @property
    def constant_text(self) -> str:
        if not self.constant:
            return "-"
        if len(self.constant) >= self.width:
            return "all"
        if not self.names:
            return f"{len(self.constant)} ({indices_text(self.constant)})"
        texts = _names_text([self.names[index] for index in self.constant])
        if len(texts) > _MAX_NAMES:
            texts = [*texts[:_MAX_NAMES], "..."]
        return f"{len(self.constant)} ({', '.join(texts)})"

    @property
    def dimensions_text(self) -> str:
        return ", ".join(_names_text(self.names))

    @property
    def range_text(self) -> str:
        """Smallest and largest value of all dimensions as text."""
        return range_text([*self.min, *self.max])


def summarize_field(
    name: str, statistics: Mapping[str, Array], recorded: Names, **others: Any
) -> FieldSummary:
    """Summary of a field; `statistics`: `min`, `max`, `mean` and, if known, `std` [C]."""
    width = len(statistics["mean"])
    names = tuple(dimension_names(name, width, recorded))
    return FieldSummary(
        name,
        width=width,
        constant=_constant(name, statistics),
        names=() if names == tuple(map(str, range(width))) else names,
        **{key: _numbers(values) for key, values in statistics.items()},
        **others,
    )


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
            return f"is {values.shape[1]} wide, but {self.width} in earlier episodes"
        self._dtypes[str(values.dtype)] = None
        return self._add_numbers(values.astype(np.float64))

    def info(self) -> FieldSummary:
        if self.is_text:
            example = next(iter(self._texts), "")
            return FieldSummary(self.name, "text", 0, episodes=self.episodes, example=example)
        statistics = {
            "min": self._low,
            "max": self._high,
            "mean": self._sum / np.maximum(self._count, 1),
        }
        return summarize_field(
            self.name,
            statistics,
            self._recorded,
            dtype=", ".join(self._dtypes),
            episodes=self.episodes,
        )

    def _add_numbers(self, values: Array) -> str:
        finite = np.isfinite(values)
        self._low = np.minimum(self._low, np.where(finite, values, np.inf).min(0))
        self._high = np.maximum(self._high, np.where(finite, values, -np.inf).max(0))
        self._sum += np.where(finite, values, 0).sum(0)
        self._count += finite.sum(0)
        missing = int(values.size - finite.sum())
        return f"has {counted(missing, 'value')} of NaN or infinity" if missing else ""


def dimensions_table(fields: Sequence[FieldSummary]) -> Table:
    """Table of the recorded names of dimensions, one row per field."""
    rows: list[tuple[str, str]] = []
    for field in fields:
        if field.names and list(field.names) != dimension_names(field.name, field.width, {}):
            rows.append((field.name, field.dimensions_text))
    return Table(("field", "names"), rows, "Dimensions")


def lowdim_columns(arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Arrays that are fields of numbers with `rows` rows, as [rows, C]."""
    columns: dict[str, Array] = {}
    for name, values in arrays.items():
        if name.startswith((*CALIBRATION, "intrinsics.")) or name in MASKS:
            continue
        is_number = values.dtype.kind in "fiu" and values.ndim in (1, 2)
        if is_number and values.size > 0 and len(values) == rows:
            columns[name] = values.reshape(rows, -1)
    return columns


def policy_fields(
    known: Mapping[str, Array],  # map from field to its values [S, C], to select from
    # configured names; a missing `_relative` field is replaced by its absolute field
    actions: Sequence[object],
    proprioception: Sequence[object],  # configured names
    recorded: Names,  # recorded names of dimensions
) -> tuple[list[FieldValues], list[FieldValues]]:
    """Action and proprioception fields for charts, at most twelve of each."""
    names = list(known)
    predicted = _configured(actions, names) or _named("robot__action", names)
    observed = _configured(proprioception, names) or _named("robot__actual", names)
    if not predicted and not observed:
        predicted = [name for name in names if "action" in name]
        observed = [name for name in names if name not in predicted]
    return _values(predicted, known, recorded), _values(observed, known, recorded)


def _configured(configured: Sequence[object], names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in map(str, configured):
        plain = name.removesuffix(_RELATIVE)
        if name in names:
            found[name] = None
        elif plain in names:
            found[plain] = None
    return list(found)


def _named(prefix: str, names: Sequence[str]) -> list[str]:
    """Fields whose names start with `prefix`, poses and grippers first."""
    fields = [name for name in names if name.startswith(prefix)]
    return sorted(fields, key=lambda name: name.endswith(_RELATIVE) or not _POSE.search(name))


def _values(names: Sequence[str], known: Mapping[str, Array], recorded: Names) -> list[FieldValues]:
    fields: list[FieldValues] = []
    for name in names[:_MAX_FIELDS]:
        values = known[name]
        dimensions = dimension_names(name, values.shape[1], recorded)
        fields.append(FieldValues(name, values, dimensions, unit(name)))
    return fields


def position_fields(names: Iterable[str]) -> dict[str, str]:
    """Map from measured position field to measured rotation field, by their published names."""
    rotations: dict[str, str] = {}
    for name in names:
        if _POSITION.match(name):
            rotations[name] = f"{name.removesuffix('xyz')}rot_6d"
    return rotations


def pose_tracks(
    fields: Mapping[str, Array], pairs: Mapping[str, str]
) -> tuple[EndEffectorTrack, ...]:
    """Tracks of the position fields that exist; rotations are optional; `fields`: map from field
    name to values [S, C].
    """
    tracks: list[EndEffectorTrack] = []
    for position, rotation in pairs.items():
        xyz = fields.get(position)
        rot6d = fields.get(rotation)
        if xyz is None or xyz.shape[1:] != (3,) or xyz.dtype.kind != "f":
            continue
        if rot6d is not None and rot6d.shape != (len(xyz), 6):
            rot6d = None
        match = _POSITION.match(position)
        arm = match["arm"] if match else position
        tracks.append(EndEffectorTrack(arm, len(tracks) % _ARMS, xyz, rot6d))
    return tuple(tracks)


def _names_text(names: Sequence[str]) -> list[str]:
    """Names of dimensions; consecutive numbers of a group become a range: `left_arm.0-6`."""
    texts: list[str] = []
    last_group = ""
    first = 0  # of the range so far
    last = -1
    for name in names:
        group, _, number = name.rpartition(".")
        index = int(number) if group and number.isdecimal() else -1
        if index > 0 and group == last_group and index == last + 1:
            texts[-1] = f"{group}.{first}-{index}"
        else:
            texts.append(name if index < 0 else f"{group}.{index}")
            first = index
        last_group = group
        last = index
    return texts


def _constant(name: str, statistics: Mapping[str, Array]) -> tuple[int, ...]:
    try:
        return tuple(np.flatnonzero(constant_dimensions(statistics, name)).tolist())
    except DataError:  # a range that is not finite has no constant dimensions
        return ()


def _numbers(values: Array) -> Numbers:
    return tuple(value if np.isfinite(value) else None for value in values.tolist())
