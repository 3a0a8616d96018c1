"""Writes lists of image shards for training and validation; no image is read.

A small command from top to bottom: its configuration, whose keys are options on the command line;
its result, which is printed as text or as one JSON document; and the function itself, which checks
the input, writes two lists atomically, and returns the result. A row in `cli/commands.py` names all
three.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from vlatool.config.base import (
    ConfigModel,
    Names,
    check_required,
    execution_field,
    option,
    required_field,
)
from vlatool.datasets.image_shards.layout import (
    PUBLISHED_NAME,
    TRAIN_LIST,
    VAL_LIST,
    image_tars,
    is_list,
    published_tars,
    validation_positions,
    write_lists,
)
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import DRY_RUN_HELP
from vlatool.jobs.ownership import require_input
from vlatool.jobs.record import read_record
from vlatool.results import Result
from vlatool.storage.atomic import remove_partials_of
from vlatool.storage.tree import file_names
from vlatool.storage.uri import can_list, location


class SplitConfig(ConfigModel):
    """Options of `vlatool split`."""

    NAMES: ClassVar[Names] = {
        "data_dir": "shards",
    }

    shards: str = required_field("", "Folder of image shards.")
    val_ratio: float = option(
        0.01, "Share of the shards for validation; at least one shard.", gt=0, lt=1
    )
    train_output: str | None = option(
        None, f"List for training; null: {TRAIN_LIST} next to the shards."
    )
    val_output: str | None = option(
        None, f"List for validation; null: {VAL_LIST} next to the shards."
    )
    file_pattern: str | None = option(
        None,
        "Regular expression for names of shards, whose first group is the number of the episode; "
        f"null: the shards in the manifest, or {PUBLISHED_NAME} if there is none.",
    )
    absolute: bool = option(False, "Write absolute paths, instead of paths relative to the list.")
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)

    @field_validator("file_pattern")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        try:
            has_group = value is None or re.compile(value).groups > 0
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        if not has_group:
            raise ValueError("needs a group around the episode number")
        return value


@dataclass(frozen=True)
class SplitResult(Result):
    """The lists and their numbers of shards."""

    shards: str
    train_output: str
    val_output: str
    train: int
    val: int
    status: str = "written"  # or `planned`

    def lines(self) -> list[str]:
        verb = "would list " if self.is_planned else ""
        return [
            f"{self.train_output}: {verb}{counted(self.train, 'shard')} for training",
            f"{self.val_output}: {verb}{counted(self.val, 'shard')} for validation",
            *(["nothing was written"] if verb else []),
        ]


def split(config: SplitConfig, *, reporter: Reporter = NULL) -> SplitResult:
    """Splits shards into training and validation lists, deterministically.

    Raises:
        UsageError: A list would replace a file of another kind, or both lists have one path.
        DataError: There are no shards or too few, or the run that writes them has not finished.
    """
    check_required(config, "vlatool split SHARDS --val-ratio 0.01")
    folder = require_input(config.shards)
    tars = _tars(folder, config.file_pattern)
    val_positions = set(validation_positions(len(tars), config.val_ratio))
    train = [tar for index, tar in enumerate(tars) if index not in val_positions]
    val = [tar for index, tar in enumerate(tars) if index in val_positions]
    if not train:
        raise DataError.at(
            folder,
            f"{counted(len(tars), 'shard')}: --val-ratio {config.val_ratio} leaves none for "
            "training",
            hint="write more shards, or lower --val-ratio",
            code="data.no_samples",
            shards=len(tars),
        )
    targets = _targets(config, folder)
    reporter.note(f"shards: {len(tars)}")
    if not config.dry_run:
        for target in targets:
            remove_partials_of(target)
        write_lists((targets[0], train), (targets[1], val), absolute=config.absolute)
    status = "planned" if config.dry_run else "written"
    return SplitResult(
        config.shards, str(targets[0]), str(targets[1]), len(train), len(val), status
    )


def _tars(folder: Path, pattern: str | None) -> Sequence[Path]:
    record = read_record(folder)
    if record is not None and record.result is None:
        raise record.no_manifest_error(folder)
    tars = image_tars(folder) if pattern is None else published_tars(folder, pattern)
    if not tars:
        raise DataError.at(
            folder,
            f"holds no shard whose name matches {pattern or PUBLISHED_NAME}",
            hint="give a folder from `vlatool preprocess images`, or a --file-pattern that fits",
            code="data.no_samples",
        )
    present = set(file_names(folder)) if can_list(folder) else {tar.name for tar in tars}
    if missing := [tar.name for tar in tars if tar.name not in present]:
        others = f", as are {len(missing) - 1} other shards" if len(missing) > 1 else ""
        raise DataError(
            f"{folder / missing[0]}: is missing{others}",
            hint="copy the shards again, or write them again with --overwrite",
            code="data.missing",
            details={"path": str(folder), "shards": missing},
        )
    return tars


def _targets(config: SplitConfig, folder: Path) -> tuple[Path, Path]:
    train = location(config.train_output) if config.train_output else folder / TRAIN_LIST
    val = location(config.val_output) if config.val_output else folder / VAL_LIST
    if train == val:
        raise UsageError(
            f"{train}: is given for both lists", hint="give two files", code="usage.conflict"
        )
    for target in (train, val):
        if target.exists() and not is_list(target):
            raise UsageError.at(
                target,
                "exists, and is not a list of shards",
                hint="choose other names with --train-output and --val-output",
                code="usage.output_exists",
            )
    return train, val
