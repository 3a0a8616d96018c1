"""Configuration and result of a command that runs a job: the part that all of them share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from vlatool.config.base import ConfigModel, execution_field
from vlatool.events import counted
from vlatool.jobs.executor import Executor, ProcessExecutor, SerialExecutor, default_workers
from vlatool.results import Result, outcome

Engine = Literal["local", "ray"]

JOB_KEYS = ("on_error", "max_failures", "overwrite", "dry_run")
ENGINE_KEYS = ("engine", "workers", "ray_address", "ray_num_cpus")
DRY_RUN_HELP = "Report what would be done and write nothing."
_SHOWN_FAILURES = 10
_LISTED_LAST = ("failures", "resumed", "seconds", "status")


class JobConfig(ConfigModel):
    """Options that control how a job runs; none of them changes the output."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"Output": ("output", *JOB_KEYS)}

    on_error: Literal["skip", "stop"] = execution_field(
        "skip", "skip leaves out episodes that fail; stop ends the command at the first failure."
    )
    max_failures: int | None = execution_field(
        None, "Stop once more than this many episodes have failed.", ge=0
    )
    overwrite: bool = execution_field(
        default=False, description="Replace an output that was made with other options."
    )
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)

    def recorded_options(self) -> dict[str, Any]:
        """Values of the keys that change the output, for its record: JSON."""
        return self.model_dump(mode="json", exclude={*self.no_effect_on_output})


class EngineConfig(JobConfig):
    """Options of a job that works in several processes, here or on a Ray cluster."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **JobConfig.help_groups,
        "Engine": ENGINE_KEYS,
    }

    engine: Engine = execution_field(
        "local", "Work in processes on this machine (local), or on a Ray cluster (ray)."
    )
    workers: int | None = execution_field(None, "Worker processes; null: one per CPU.", ge=1)
    ray_address: str | None = execution_field(
        None, "Join the Ray cluster at this address; null starts a private one."
    )
    ray_num_cpus: int | None = execution_field(
        None, "Number of CPUs of a private Ray cluster; null uses --workers.", ge=1
    )


def executor_of(config: EngineConfig, preload: Sequence[str] = ()) -> Executor:
    """Executor that a config asks for.

    Args:
        config: The config.
        preload: Modules that local processes import when they start.
    """
    if config.dry_run:
        return SerialExecutor()
    if config.engine == "ray":
        from vlatool.jobs.ray_executor import RayExecutor

        return RayExecutor(config.ray_num_cpus or config.workers, config.ray_address)
    return make_executor(config.workers, preload)


def make_executor(workers: int | None, preload: Sequence[str] = ()) -> Executor:
    """Creates an executor on this machine; one worker needs no process pool.

    Args:
        workers: Number of processes; None for one per processor.
        preload: Modules that the workers import when they start.
    """
    count = workers or default_workers()
    return SerialExecutor() if count <= 1 else ProcessExecutor(count, preload)


@dataclass(frozen=True, kw_only=True)
class OutputResult(Result):
    """Result of a command that writes an output by a job; a subclass adds its contents.

    The loop sets the values below, except `output`, which is in `JobSpec.shown`.
    """

    item_name: ClassVar[str] = "episode"  # key of the name of a failed item

    output: str = ""  # location as it was given
    failures: tuple[Mapping[str, Any], ...] = ()  # items that are not in the output
    seconds: float = 0.0  # duration
    status: str = "written"  # or `already complete`, `planned`

    def document(self) -> dict[str, Any]:
        """The fields; the fields of the loop come last."""
        values = super().document()
        return values | {name: values.pop(name) for name in _LISTED_LAST if name in values}

    def lines(self) -> list[str]:
        """Summary and details, then the failed items."""
        done = ""
        failing = ""
        verb = "failed"
        resumed: int = getattr(self, "resumed", 0)
        if self.is_planned:
            done = f", {resumed} are done" if resumed else ""
            failing = f", {len(self.failures)} would fail" if self.failures else ""
            verb = "would fail"
        plan = f"{self.summary()}{done}{failing}"
        lines = [outcome(self.output, self.status, self.summary(), plan), *self.details()]
        if resumed and self.status not in ("planned", "already complete"):
            name = self.item_name
            earlier = counted(resumed, f"{name} was", f"{name}s were")
            lines.append(f"{earlier} written by an earlier run")
        shown = self.failures[:_SHOWN_FAILURES]
        lines += [f"{verb} {row[self.item_name]}: {row['message']}" for row in shown]
        hidden = len(self.failures) - len(shown)
        return [*lines, f"... and {hidden} more; --json lists all"] if hidden else lines

    def summary(self) -> str:
        """Amount and size of the content in one line; `would ...` for a dry run."""
        return ""

    def details(self) -> Iterable[str]:
        """More lines about the content."""
        return ()

    @classmethod
    def of_record(cls, recorded: Mapping[str, Any] | None, shown: Mapping[str, Any]) -> Self:
        """Result of a complete run from its record, whose unknown keys are ignored.

        `shown` replaces values of the record.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if recorded and field.name in recorded:
                value = recorded[field.name]
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return replace(cls(**values), **shown, status="already complete")


@dataclass(frozen=True, kw_only=True)
class JobResult(OutputResult):
    """Result of a command whose items are episodes."""

    episodes: int = 0  # in the output
    resumed: int = 0  # of them finished by an earlier run

    def summary(self) -> str:
        verb = "would write " if self.is_planned else ""
        return f"{verb}{counted(self.episodes, 'episode')}"
