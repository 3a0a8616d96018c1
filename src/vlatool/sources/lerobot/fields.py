"""Which columns of a LeRobot data set are observed and predicted."""

from collections.abc import Sequence
from pathlib import Path

from vlatool.errors import DataError
from vlatool.sources.base import DatasetWarnings, unknown_field
from vlatool.sources.lerobot.meta import INFO_FILE, Feature, Info


def choose_fields(
    root: Path,
    info: Info,
    requested: Sequence[str] | None,
    convention: tuple[str, str],
    columns: Sequence[str] | None,
    warnings: DatasetWarnings,
) -> tuple[str, ...]:
    """The columns asked for, else those the naming convention points to.

    Args:
        root: The data set.
        info: Its features.
        requested: What the user asked for; null leaves it to the convention.
        convention: The first part of the usual names, and the name used where none has it.
        columns: The columns of a parquet file of the set; null when none can be read.
        warnings: Told about features the convention names but that cannot be used.

    Raises:
        DataError: A requested field does not exist or is not numeric.
    """
    if requested is not None:
        return tuple(_requested_field(root, info, name) for name in requested)
    names = _conventional(info, *convention)
    chosen: list[str] = []
    for name in names:
        if info.features[name].width is None:
            reason = "is not a vector"
        elif columns is not None and name not in columns:
            reason = "has no column in the data"
        else:
            chosen.append(name)
            continue
        warnings.add_once("lerobot.field_left_out", f"{root}: {name} {reason}; left out")
    return tuple(chosen)


def _conventional(info: Info, prefix: str, plain: str) -> list[str]:
    """Numeric features under `prefix`, else the one named `plain`, as LIBERO sets have it."""
    numeric = [name for name, feature in info.features.items() if feature.is_number]
    names = [name for name in numeric if name == prefix or name.startswith(f"{prefix}.")]
    return names or [name for name in numeric if name == plain]


def _requested_field(root: Path, info: Info, name: str) -> str:
    feature = info.features.get(name)
    numeric = [
        known for known, candidate in info.features.items() if _is_readable_number(candidate)
    ]
    if feature is None:
        raise unknown_field(name, numeric, root / INFO_FILE)
    if not _is_readable_number(feature):
        raise DataError(
            f"{root / INFO_FILE}: the field {name!r} holds {feature.dtype}, expected numbers",
            hint=f"choose from: {', '.join(numeric)}",
            code="data.not_numeric",
            details={"field": name, "known": numeric, "file": str(root / INFO_FILE)},
        )
    return name


def _is_readable_number(feature: Feature) -> bool:
    return feature.is_number or feature.dtype == "bool"


def check_task_column(
    root: Path, info: Info, column: str | None, columns: Sequence[str] | None
) -> None:
    """Refuses a task column that is neither a feature nor a column, with DataError."""
    known = dict.fromkeys([*info.features, *(columns or ())])
    if column is not None and column not in known:
        raise unknown_field(column, list(known), root / INFO_FILE, "task column")
