"""Named normalization of actions, stored with data and checkpoints.

`z = (a - mean) / std`, in float32, without epsilon or clipping. Built-in profiles are in
`profiles/`; others are files of the same form. Source: reference/future-vla 4.1.

Legend of shapes: D action dimensions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.plugins import did_you_mean
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import DocumentError, read_yaml
from vlatool.storage.uri import is_remote, location
from vlatool.transforms.normalize import constant_dimensions, held_values

NAME = "profile.yaml"
GRIPPER = "gripper"
# Profile of the published data.
PUBLISHED = "libero"
Gripper = Literal["raw", "normalised"]

_FOLDER = Path(__file__).resolve().parent / "profiles"
_CONSTANT_WIDTH = 1e-6
_MAX_NUMBER = 1e38  # fits float32
_KEYS = ("name", "dimensions", "mean", "std", "factors", "raw", "held")
_HINT = "`vlatool tokenizer fit-fast` writes one; the form is in docs/guides/tokenizers.md"


@dataclass(frozen=True)
class NormalizationProfile:
    """Mean and scale of every action dimension."""

    name: str
    mean: tuple[float, ...]  # D numbers
    std: tuple[float, ...]  # D numbers above 0
    factors: tuple[float, ...] = ()  # factor of each `std`; default 1
    raw: tuple[str, ...] = ()  # names of the dimensions that are not normalized
    dimensions: tuple[str, ...] = ()  # unique names; default: numbers from 0
    # Dimension that never moved in the data of a run, to its value.
    held: Mapping[str, float] = field(
        default_factory=dict[str, float], metadata={"in_digest": False}
    )

    def __post_init__(self) -> None:
        width = len(self.mean)
        names = self.dimensions or tuple(map(str, range(width)))
        object.__setattr__(self, "factors", self.factors or (1.0,) * width)
        object.__setattr__(self, "dimensions", names)
        self._check()

    @property
    def width(self) -> int:
        """Number of dimensions D."""
        return len(self.mean)

    @cached_property
    def center(self) -> Array:
        """float32 [D], subtracted; 0 for raw dimensions."""
        return np.where(self._is_raw, 0.0, self.mean).astype(np.float32)

    @cached_property
    def scale(self) -> Array:
        """float32 [D], divisor; 1 for raw dimensions."""
        scaled = np.multiply(self.std, self.factors)
        return np.where(self._is_raw, 1.0, scaled).astype(np.float32)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of center and scale; names do not matter."""
        numbers = [self.center.tolist(), self.scale.tolist()]
        return sha256(json.dumps(numbers).encode()).hexdigest()

    def normalize(self, actions: Any) -> Array:
        """Normalized actions float32 [..., D] of actions [..., D]."""
        array = self._as_values(actions)
        with np.errstate(over="ignore", invalid="ignore"):  # callers check for infinity
            return (array - self.center) / self.scale

    def denormalize(self, values: Any) -> Array:
        """Inverse of `normalize`, float64 [..., D]; raises as it does. Dimensions of `held` have
        their value.
        """
        actions = (self._as_values(values) * self.scale + self.center).astype(np.float64)
        for name, value in self.held.items():
            actions[..., self.dimensions.index(name)] = value
        return actions

    @property
    def is_held(self) -> Array:
        """Bool [D], True for dimensions of `held`."""
        return np.array([name in self.held for name in self.dimensions])

    def document(self) -> dict[str, Any]:
        """JSON-serializable form that `parse_profile` reads."""
        document: dict[str, Any] = {
            "name": self.name,
            "dimensions": list(self.dimensions),
            "mean": list(self.mean),
            "std": list(self.std),
            "factors": list(self.factors),
            "raw": list(self.raw),
        }
        if self.held:
            document["held"] = dict(self.held)
        return document

    def _check(self) -> None:
        _require(bool(self.name and self.mean), "name or mean is missing")
        for key in ("std", "factors", "dimensions"):
            count = len(getattr(self, key))
            _require(count == self.width, f"{key} has {count} entries, mean has {self.width}")
        _require(len(set(self.dimensions)) == self.width, "dimensions has a duplicate name")
        for key, listed in (("raw", self.raw), ("held", self.held)):
            for name in listed:
                _require(name in self.dimensions, f"{key} has {name!r}, which is not in dimensions")
        with np.errstate(over="ignore", under="ignore"):
            numbers = [self.center, self.scale]
        _require(bool(np.isfinite(numbers).all()), "a number is not finite, or too large")
        _require(bool((self.scale > 0).all()), "a standard deviation is not above 0")

    @property
    def _is_raw(self) -> Array:
        return np.array([name in self.raw for name in self.dimensions])

    def _as_values(self, values: Any) -> Array:
        array = np.asarray(values, np.float32)
        if array.shape[-1:] != (self.width,):
            shape = list(array.shape)
            raise ValueError(
                f"shape {shape} does not match the {counted(self.width, 'dimension')} of "
                f"{self.name}"
            )
        return array


def profile_names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_profile(name_or_location: str, gripper: Gripper | None = None) -> NormalizationProfile:
    """Profile by name, or from a file or folder at any location; `gripper`: whether the dimension
    `gripper` is normalized; None: as the profile says.
    """
    path = _file(name_or_location)
    try:
        profile = parse_profile(read_yaml(path), str(path))
    except DocumentError as error:
        raise _broken_error(str(path), error.reason) from None
    if GRIPPER not in profile.dimensions:
        if gripper == "normalised":
            raise no_gripper_error(profile.name, profile.dimensions)
        return profile
    if gripper is None:
        return profile
    raw = [name for name in profile.raw if name != GRIPPER]
    if gripper == "raw":
        raw.append(GRIPPER)
    return replace(profile, raw=tuple(raw))


def has_profile(folder: Path) -> bool:
    """True if a folder holds a profile, as the folder of an action tokenizer does."""
    return (folder / NAME).is_file()


def no_gripper_error(name: str, dimensions: Sequence[str]) -> UsageError:
    """Error for the option `--gripper` if no dimension is named `gripper`."""
    return UsageError(
        f"the profile {name} has no dimension {GRIPPER}",
        hint=f"leave --gripper out; its dimensions are {', '.join(dimensions)}",
        code="usage.unsupported",
    )


def write_profile(path: Path, profile: NormalizationProfile) -> None:
    """Writes a profile as a file for `read_profile`."""
    write_text(path, yaml.safe_dump(profile.document(), sort_keys=False))


def parse_profile(document: object, where: str) -> NormalizationProfile:
    """Profile in a manifest or file."""
    try:
        content: Mapping[str, Any] = document if isinstance(document, Mapping) else {}
        _require(bool(content), "expected a mapping")
        for key in content:
            _require(key in _KEYS, f"unknown key {key!r}; {did_you_mean(str(key), list(_KEYS))}")
        return NormalizationProfile(
            str(content.get("name", "")),
            _numbers(content, "mean"),
            _numbers(content, "std"),
            _numbers(content, "factors") if content.get("factors") else (),
            _names(content, "raw"),
            _names(content, "dimensions"),
            _held(content.get("held") or {}),
        )
    except ValueError as error:
        raise _broken_error(where, str(error)) from None


def _broken_error(where: str, reason: str) -> DataError:
    return DataError(
        f"{where}: {reason}",
        hint=_HINT,
        code="data.broken",
        details={"finding": "broken_profile", "where": where},
    )


def check_same_profile(first: NormalizationProfile, second: NormalizationProfile) -> None:
    """Checks that actions and their tokenizer are normalized with the same center and scale."""
    if first.digest == second.digest:
        return
    differences = _differences(first, second)
    raise DataError(
        f"the action tokenizer was fitted with other numbers ({second.name}) than the actions are "
        f"normalized with ({first.name}): {differences[0]}",
        hint="use one profile for an action tokenizer and all its data: leave out --profile and "
        "--gripper, or fit a tokenizer with this profile",
        code="data.mismatch",
        details={"differences": differences},
    )


def compute_profile(
    name: str, actions: Array, dimensions: Sequence[str] = (), raw: Sequence[str] = ()
) -> NormalizationProfile:
    """Profile of actions [N, D]: mean and population standard deviation.

    A dimension with `max - min <= 1e-6 * max(1, |mean|)` is constant and has the scale 1.
    """
    rows = np.asarray(actions, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError("there are no actions")
    if not np.isfinite(rows).all():
        raise ValueError("an action is not finite")
    mean = rows.mean(axis=0)
    std = rows.std(axis=0)
    width = rows.max(axis=0) - rows.min(axis=0)
    std = np.where(width <= _CONSTANT_WIDTH * np.maximum(1.0, np.abs(mean)), 1.0, std)
    return NormalizationProfile(
        name,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        raw=tuple(raw),
        dimensions=tuple(dimensions),
    )


def _differences(first: NormalizationProfile, second: NormalizationProfile) -> list[str]:
    if first.width != second.width:
        return [f"{first.width} and {counted(second.width, 'dimension')}"]
    differences: list[str] = []
    values = {"center": (first.center, second.center), "scale": (first.scale, second.scale)}
    for label, (ours, theirs) in values.items():
        for index in np.flatnonzero(ours != theirs):
            place = f"dimension {first.dimensions[index]}: {label}"
            differences.append(f"{place} {ours[index]!s} and {theirs[index]!s}")
    return differences


def _file(name_or_location: str) -> Path:
    if name_or_location in profile_names():
        return _FOLDER / f"{name_or_location}.yaml"
    path = location(name_or_location)
    if path.is_dir() or (is_remote(path) and not path.suffix):
        path = path / NAME
    if path.is_file():
        return path
    known = profile_names()
    raise UsageError(
        f"{name_or_location}: no profile and no file has this name",
        hint=did_you_mean(name_or_location, known) or f"known names: {', '.join(known)}",
        code="usage.unknown_name",
        details={"known": known},
    )


def _numbers(content: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = content.get(key)
    if not isinstance(values, list) or not values or not all(map(_is_number, values)):
        raise ValueError(f"{key} is not a list of numbers")
    return tuple(map(float, values))


def _held(content: object) -> dict[str, float]:
    if not isinstance(content, Mapping) or not all(map(_is_number, content.values())):
        raise ValueError("held is not a map from dimensions to numbers")
    return {str(name): float(value) for name, value in content.items()}


def held_dimensions(
    dimensions: Sequence[str], ranges: Sequence[tuple[Array, Array]]
) -> dict[str, float]:
    """Dimension that never moved to its value, from (smallest, largest) values [D] of data sets.

    The value is exact if it never changed at all, else the middle of its range.
    """
    low = np.min([smallest for smallest, _ in ranges], axis=0)
    high = np.max([largest for _, largest in ranges], axis=0)
    stats = {"min": low, "max": high, "mean": (low + high) / 2}
    values = held_values(stats, "actions")
    held: dict[str, float] = {}
    for index in np.flatnonzero(constant_dimensions(stats, "actions")).tolist():
        held[dimensions[index]] = float(values[index])
    return held


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_MAX_NUMBER < value < _MAX_NUMBER


def _names(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = content.get(key) or []
    _require(isinstance(values, list), f"{key} is not a list of names")
    return tuple(map(str, values))


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 - like `assert`
    if not condition:
        raise ValueError(problem)
