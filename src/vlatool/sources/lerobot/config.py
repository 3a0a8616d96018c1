"""Options of LeRobot formats: columns that are observed, predicted or name the task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from vlatool.artifacts.lerobot.format import INFO_FILE
from vlatool.config.base import ConfigModel
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.base import unknown_field
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.meta import Info

# Prefix of the usual column names, and the name used if no column has it, as in LIBERO sets.
OBSERVED = ("observation", "state")
PREDICTED = ("action", "actions")


class LeRobotConfig(ConfigModel):
    """Options for LeRobot data sets.

    Class attributes in which formats based on LeRobot differ:
        camera_columns: Features that are cameras, in order; empty: all cameras.
        needed_columns: Columns that an episode must have.
        is_list_first: True if the tasks in the list of episodes take precedence over its rows.
        needs_instruction: True if an episode without an instruction is an error.
        known_names: Map from feature to its dimension names, used if info.json has none.
    """

    camera_columns: ClassVar[tuple[str, ...]] = ()
    needed_columns: ClassVar[tuple[str, ...]] = ()
    is_list_first: ClassVar[bool] = False
    needs_instruction: ClassVar[bool] = False
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    observation_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy observes; default: all numeric ones below "
        "observation., or state.",
    )
    action_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy predicts; default: all numeric ones below action, or "
        "actions.",
    )
    task_column: str | None = Field(
        default=None, description="Column with the task index or sentence; default: task_index."
    )
    task_join: str | None = Field(
        default=None,
        description="Separator that joins several tasks of an episode whose rows name none.",
    )
    split: str | None = Field(
        default=None,
        description="Read only this split of meta/info.json, such as train; default: all episodes.",
    )


def select_fields(
    root: Path,
    info: Info,
    requested: Sequence[str] | None,
    convention: tuple[str, str],
    columns: Sequence[str] | None,
    findings: list[Finding],
) -> tuple[str, ...]:
    """The requested columns, else those of the naming convention.

    `convention` is `OBSERVED` or `PREDICTED`. Features of the convention that are not vectors, or
    not among the `columns` of a file (None if no file can be read), are left out; `findings`
    reports them.

    Raises:
        DataError: A requested field does not exist or is not numeric; the shape of another one is
            invalid; or the data set has actions, but none is usable.
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
            raise _unusable_error(root, name, "has no shape of positive integers", convention)
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
    return DataError.at(
        path,
        f"the feature {name!r} {reason}",
        hint=f"correct the file, or name the columns to use with {option}",
        code="data.unusable_feature",
        field=name,
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
    """Raises DataError if the task column is neither a feature nor a column."""
    known = dict.fromkeys([*info.features, *(columns or ())])
    if column is not None and column not in known:
        raise unknown_field(column, list(known), root / INFO_FILE, "task column")
