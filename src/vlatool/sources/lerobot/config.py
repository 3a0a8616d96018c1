"""Which columns of a LeRobot data set are observed and predicted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from vlatool.artifacts.lerobot import INFO_FILE
from vlatool.config.base import ConfigModel
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.base import unknown_field
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.meta import Info

# The first part of the usual names, and the name used where none has it, as in LIBERO sets.
OBSERVED = ("observation", "state")
PREDICTED = ("action", "actions")


class LeRobotConfig(ConfigModel):
    """Which columns of a LeRobot data set are read.

    Class attributes in which kinds of sets differ:
        camera_columns: Features that hold pictures, in order; empty for all that there are.
        needed_columns: Columns without which an episode is broken.
        is_list_first: Whether the tasks that an episode is listed with count before its rows.
        needs_instruction: Whether an episode without a sentence is broken.
        known_names: What the dimensions of a feature are called where info.json does not say so.
    """

    camera_columns: ClassVar[tuple[str, ...]] = ()
    needed_columns: ClassVar[tuple[str, ...]] = ()
    is_list_first: ClassVar[bool] = False
    needs_instruction: ClassVar[bool] = False
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    observation_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy observes; default: every numeric one under "
        "observation., or state.",
    )
    action_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy predicts; default: every numeric one under action, "
        "or actions.",
    )
    task_column: str | None = Field(
        default=None, description="Column with the task's number or sentence; default: task_index."
    )
    task_join: str | None = Field(
        default=None, description="Text between the tasks of an episode whose rows do not name one."
    )


def select_fields(
    root: Path,
    info: Info,
    requested: Sequence[str] | None,
    convention: tuple[str, str],
    columns: Sequence[str] | None,
    findings: list[Finding],
) -> tuple[str, ...]:
    """The columns asked for, else those the naming convention points to.

    `convention` is `OBSERVED` or `PREDICTED`. Features that it points to but that are no vectors,
    or not among the `columns` of a file (null where none can be read), are left out, which
    `findings` is told.

    Raises:
        DataError: A requested field does not exist or is not numeric; the shape of another is no
            shape; or there are actions, but none that can be used.
    """
    if requested is not None:
        return tuple(_requested_field(root, info, name) for name in requested)
    prefix, plain = convention
    conventional = [
        name for name in info.features if name == prefix or name.startswith(f"{prefix}.")
    ]
    numeric = [name for name, feature in info.features.items() if feature.is_number]
    names = [name for name in conventional if name in numeric]
    names = names or [name for name in numeric if name == plain]
    if conventional and not names and convention is PREDICTED:
        declared = info.features[conventional[0]].dtype
        raise _unusable_error(
            root, conventional[0], f"holds {declared}, expected numbers", convention
        )
    selected: list[str] = []
    reason = ""
    for name in names:
        if info.features[name].shape is None:
            raise _unusable_error(root, name, "has no shape of positive whole numbers", convention)
        if info.features[name].width is None:
            reason = "is not a vector"
        elif columns is not None and name not in columns:
            reason = "has no column in the data"
        else:
            selected.append(name)
            continue
        message = f"{root}: {name} {reason}; left out"
        findings.append(LEROBOT("field_left_out", message, field=name))
    if names and not selected and convention is PREDICTED:
        raise _unusable_error(root, names[0], reason, convention)
    return tuple(selected)


def _unusable_error(root: Path, name: str, reason: str, convention: tuple[str, str]) -> DataError:
    path = root / INFO_FILE
    option = "--action-keys" if convention is PREDICTED else "--observation-keys"
    return DataError(
        f"{path}: the feature {name!r} {reason}",
        hint=f"correct the file, or name the columns to use with {option}",
        code="data.unusable_feature",
        details={"path": str(path), "field": name},
    )


def _requested_field(root: Path, info: Info, name: str) -> str:
    feature = info.features.get(name)
    numeric = [known for known, other in info.features.items() if other.is_readable_number]
    if feature is None:
        raise unknown_field(name, numeric, root / INFO_FILE)
    if not feature.is_readable_number:
        raise DataError(
            f"{root / INFO_FILE}: the field {name!r} holds {feature.dtype}, expected numbers",
            hint=f"choose from: {', '.join(numeric)}",
            code="data.not_numeric",
            details={"field": name, "known": numeric, "path": str(root / INFO_FILE)},
        )
    return name


def check_task_column(
    root: Path, info: Info, column: str | None, columns: Sequence[str] | None
) -> None:
    """Refuses a task column that is neither a feature nor a column, with DataError."""
    known = dict.fromkeys([*info.features, *(columns or ())])
    if column is not None and column not in known:
        raise unknown_field(column, list(known), root / INFO_FILE, "task column")
