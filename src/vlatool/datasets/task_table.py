"""Tables of public tasks: names, sizes, and where their data are.

The built-in table is `tasks/lbm.yaml`; others are files of the same form.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vlatool.errors import DataError, UsageError
from vlatool.jobs.files import FOLDER
from vlatool.plugins import did_you_mean
from vlatool.storage.documents import DocumentError, read_yaml
from vlatool.storage.manifest import parse_values
from vlatool.storage.uri import is_file_name, location

_BUILT_IN = Path(__file__).resolve().parent / "tasks" / "lbm.yaml"
_SHOWN = 100
_HINT = "write it like the built-in table, which docs/storage.md shows"

Part = Literal["shards", "raw"]


@dataclass(frozen=True)
class Task:
    has: tuple[Part, ...]  # parts that exist: `shards` (also as episodes), `raw`
    station: str = ""  # name of the robot station; empty if unknown
    raw_gb: float | None = None  # size of the raw archive in GiB; None if unknown


@dataclass(frozen=True)
class TaskTable:
    """Tasks with the locations of their data."""

    preprocessed: str  # location before `VERSION/TASK/`
    raw: str  # location before `TASK.tar`
    version: str  # default version of the preprocessed data
    annotations: str  # location of the language annotations of the tasks
    annotations_sha256: str = ""  # digest of their content; empty if it is not compared
    tasks: Mapping[str, Task] = field(default_factory=dict[str, Task])

    def annotations_location(self, registry: str | None) -> str:
        """Location of the annotations; in a registry, if one replaces the published one."""
        name = self.annotations.rpartition("/")[2]
        return f"{registry.rstrip('/')}/{name}" if registry else self.annotations

    def find(self, name: str) -> Task:
        if name not in self.tasks:
            similar = did_you_mean(name, list(self.tasks))
            listed = "`vlatool download --list` lists all tasks"
            raise UsageError(
                f"there is no task {name}",
                hint=listed if similar.startswith("known:") else f"{similar} {listed}",
                code="usage.unknown_name",
            )
        return self.tasks[name]


def task_names() -> list[str]:
    """Names of the tasks of the built-in table."""
    return sorted(task_table().tasks)


def task_table(more: str | None = None) -> TaskTable:
    """The built-in table, with the tasks and locations of another file."""
    table = _read(_BUILT_IN, {})
    if more is None:
        return table
    defaults = asdict(replace(table, tasks={}))
    own = _read(location(more), defaults)
    return replace(own, tasks={**table.tasks, **own.tasks})


def _read(path: Path, defaults: Mapping[str, Any]) -> TaskTable:
    try:
        document = read_yaml(path)
        values = dict(document or {})
        if "annotations" in values:
            values.setdefault("annotations_sha256", "")
        table = parse_values(TaskTable, {**defaults, **values})
        for name in (*table.tasks, table.annotations.rpartition("/")[2]):
            if name in ("", ".", "..", FOLDER) or "/" in name or not is_file_name(name):
                raise ValueError(f"{ascii(name)[:_SHOWN]} cannot be the name of a file")
        return table
    except (OSError, DocumentError, TypeError, ValueError) as error:
        raise DataError.at(
            path, f"is no table of tasks: {error}", hint=_HINT, code="data.broken"
        ) from None
