"""What data a policy was trained on (its contract), and how other data differ from it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vlatool.conventions.file import Convention, Conventions
from vlatool.errors import DataError
from vlatool.report.text import number_text
from vlatool.storage.manifest import ManifestType, parse_values
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod

_RATE = 0.01
_SCALE = 0.05
Size = tuple[int, int]
# Key that `--allow` takes, value of training, other value.
Difference = tuple[str, str, str]


@dataclass(frozen=True)
class SeenCamera:
    """Images of one camera; sizes are (height, width) in pixels."""

    recorded: tuple[Size, ...] = ()  # of the recordings; empty: unknown
    size: Size | None = None  # of the training images, before the crop; None: unknown
    quarter_turns: int = 0  # clockwise, before the resize


@dataclass(frozen=True)
class Contract:
    """Facts on training data; None and empty values are unknown."""

    cameras: Mapping[str, SeenCamera] = field(default_factory=dict[str, SeenCamera])
    resize_method: ResizeMethod | Literal[""] = ""  # empty too where the aspect ratio stays
    resize_filter: ResizeFilter | Literal[""] = ""
    crop: tuple[float, float] | None = None  # (height, width) in pixels, or shares up to 1
    fields: Mapping[str, int] = field(default_factory=dict[str, int])  # observed, with widths
    actions: Mapping[str, int] = field(default_factory=dict[str, int])
    fps: float | None = None
    horizon: int | None = None  # steps of an action chunk
    conventions: tuple[Convention, ...] = ()
    statistics: str = ""  # digest
    # digests of the tokenizers by what they encode: `codes` of images, `actions`
    tokenizers: Mapping[str, str] = field(default_factory=dict[str, str])


CONTRACT = ManifestType(
    "contract.json",
    "vlatool-contract",
    1,
    Contract,
    "copy the run again, or run its train command again",
    optional=("tokenizers",),
)


def differences(trained: Contract, other: Contract) -> Iterator[Difference]:
    """Values that both know and that differ; sizes of images have a rule of their own."""
    others = _values(other)
    for key, value in _values(trained).items():
        if key not in others or others[key] == value:
            continue
        if key == "fps" and abs(float(others[key]) / float(value) - 1) <= _RATE:
            continue
        yield key, value, others[key]
    groups = {group.name: group for group in other.conventions}
    for group in trained.conventions:
        if group.name in groups:
            yield from _meanings(group, groups[group.name])


def _values(contract: Contract) -> dict[str, str]:
    """Values that are compared, as text, by key; unknown ones are left out."""
    values: dict[str, str] = {}
    for name, camera in contract.cameras.items():
        values[f"cameras.{name}.quarter_turns"] = str(camera.quarter_turns)
    if contract.resize_method:
        values["resize_method"] = contract.resize_method
    if contract.resize_filter:
        values["resize_filter"] = contract.resize_filter
    if contract.fps:
        values["fps"] = number_text(contract.fps)
    for name, width in contract.fields.items():
        values[f"fields.{name}"] = str(width)
    for name, width in contract.actions.items():
        values[f"actions.{name}"] = str(width)
    for name, digest in contract.tokenizers.items():
        if digest:
            values[f"tokenizers.{name}"] = digest
    return values


def _meanings(trained: Convention, other: Convention) -> Iterator[Difference]:
    """First attribute without a common value, or else the scale."""
    key = f"conventions.{trained.name.replace(' ', '.')}"
    for name in ("relation", "frame", "rotation"):
        values = getattr(trained, name)
        others = getattr(other, name)
        if values and others and not {*values} & {*others}:
            yield f"{key}.{name}", " or ".join(values), " or ".join(others)
            return
    # What a fit leaves makes its scale uncertain.
    share = _SCALE + (trained.residual or 0.0) + (other.residual or 0.0)
    pairs = [*zip(trained.scale, other.scale, strict=False)]
    if any(abs(a - b) > share * max(abs(a), abs(b)) for a, b in pairs):
        scale = " ".join(number_text(number) for number, _ in pairs)
        other_scale = " ".join(number_text(number) for _, number in pairs)
        yield f"{key}.scale", scale, other_scale


def refuse(
    unequal: Iterable[Difference], allow: Collection[str], where: object, hint: str
) -> dict[str, dict[str, str]]:
    """Returns the allowed differences by key; DataError for the first one that is not allowed."""
    allowed: dict[str, dict[str, str]] = {}
    for key, trained, other in unequal:
        allowed[key] = {"trained": trained, "given": other}
        if key not in allow:
            raise DataError(
                f"{where}: {key} is {other}, but the policy was trained with {trained}",
                hint=f"{hint}; --allow {key} uses it all the same",
                code="data.mismatch",
                details={"key": key, **allowed[key]},
            )
    return allowed


def conventions_in(stored: object) -> tuple[Convention, ...]:
    """Returns the conventions in the options of data; empty if there are none."""
    try:
        return parse_values(Conventions, stored).groups if stored else ()
    except ValueError:
        return ()


def contract_text(contract: Contract) -> str:
    """Images, rate and horizon, as text."""
    cameras = [f"{name} {_camera_text(each)}" for name, each in contract.cameras.items()]
    return ", ".join([*cameras, f"{number_text(contract.fps)} fps, {contract.horizon} steps"])


def size_text(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _camera_text(camera: SeenCamera) -> str:
    recorded = " or ".join(map(size_text, camera.recorded)) or "of unknown size"
    is_resized = camera.size not in (None, *camera.recorded)
    return f"{recorded} as {size_text(camera.size)}" if camera.size and is_resized else recorded
