"""Configuration and result of a command that runs a job: the part that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from vlatool.config.base import ConfigModel, execution_field
from vlatool.events import counted
from vlatool.jobs.executor import Executor, ProcessExecutor, SerialExecutor, default_workers

Engine = Literal["local", "ray"]

JOB_KEYS = ("on_error", "max_failures", "overwrite", "dry_run")
ENGINE_KEYS = ("engine", "workers", "ray_address", "ray_num_cpus")
DRY_RUN_HELP = "Report what would be done and write nothing."
_SHOWN_FAILURES = 5
_LISTED_LAST = ("failures", "resumed", "seconds", "status")


class JobConfig(ConfigModel):
    """Keys that control the execution of a job. None of them changes the output."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"Output": ("output", *JOB_KEYS)}
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset({"output", *JOB_KEYS})

    on_error: Literal["skip", "stop"] = execution_field(
        "skip", "skip: leave out episodes that fail; stop: end at the first that fails."
    )
    max_failures: int | None = execution_field(None, "Stop when more than N episodes fail.", ge=0)
    overwrite: bool = execution_field(
        default=False, description="Replace an output made with other options."
    )
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)

    def recorded_options(self) -> dict[str, Any]:
        """Values of the keys that change the output, for its record: JSON."""
        return self.model_dump(mode="json", exclude={*self.no_effect_on_output})


class EngineConfig(JobConfig):
    """Keys of a job with a pool of processes for its items, here or on Ray."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **JobConfig.help_groups,
        "Engine": ENGINE_KEYS,
    }
    no_effect_on_output: ClassVar[frozenset[str]] = JobConfig.no_effect_on_output | {*ENGINE_KEYS}

    engine: Engine = execution_field(
        "local", "local: processes on this machine; ray: a Ray cluster."
    )
    workers: int | None = execution_field(
        None, "Number of worker processes; null: one per CPU.", ge=1
    )
    ray_address: str | None = execution_field(
        None, "Address of the Ray cluster to join; null: start a private one."
    )
    ray_num_cpus: int | None = execution_field(
        None, "CPUs of a private Ray cluster; null: the value of --workers.", ge=1
    )


def executor_of(config: EngineConfig, preload: Sequence[str] = ()) -> Executor:
    """Executor that a config asks for; `preload`: modules that local processes import when they
    start.
    """
    if config.dry_run:
        return SerialExecutor()
    if config.engine == "ray":
        cpus = config.ray_num_cpus or config.workers
        return make_executor(cpus, engine="ray", ray_address=config.ray_address)
    return make_executor(config.workers, preload=preload)


def make_executor(
    # number of processes; None for one per processor (with Ray: of the cluster)
    workers: int | None,
    *,
    engine: Engine = "local",  # `local` or `ray`
    ray_address: str | None = None,  # cluster to join; None starts a private one on this machine
    preload: Sequence[str] = (),  # modules that local workers import when they start
) -> Executor:
    """Creates an executor; one local worker needs no process pool."""
    if engine == "ray":
        from vlatool.jobs.ray_executor import RayExecutor

        return RayExecutor(workers=workers, address=ray_address)
    count = workers or default_workers()
    return SerialExecutor() if count <= 1 else ProcessExecutor(count, preload)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """Result of a command that runs a job; a subclass adds what the output contains.

    The loop sets the values below, except `output`, which is in `JobSpec.shown`.
    """

    output: str = ""  # location as it was given
    episodes: int = 0  # number of items in the output
    # items that are not in the output, with code, message and hint
    failures: tuple[Mapping[str, Any], ...] = ()
    resumed: int = 0  # number of items that an earlier run finished
    seconds: float = 0.0  # duration
    # `written`, `already complete`, `planned`, or `shared` for ranks other than 0
    status: str = "written"

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        values = asdict(self)
        return values | {name: values.pop(name) for name in _LISTED_LAST}

    def text(self) -> str:
        lines = [f"{self.output}: {self.summary()}", *self.details()]
        if self.status == "planned":
            done = f", {self.resumed} are done" if self.resumed else ""
            failing = f", {len(self.failures)} would fail" if self.failures else ""
            lines[0] += f"{done}{failing}; nothing was written"
            return "\n".join([*lines, *self._failing()])
        if self.status == "already complete":
            lines[0] += "; already complete, nothing to do"
        elif self.resumed:
            lines.append(
                f"{counted(self.resumed, 'episode was', 'episodes were')} written by an earlier run"
            )
        lines += [f"failed {failure['episode']}: {failure['message']}" for failure in self.failures]
        return "\n".join([*lines, *([f"next: {self.next_command}"] if self.next_command else [])])

    def _failing(self) -> list[str]:
        """First items that would fail."""
        lines = [
            f"would fail {failure['episode']}: {failure['message']}"
            for failure in self.failures[:_SHOWN_FAILURES]
        ]
        hidden = len(self.failures) - len(lines)
        return [*lines, f"... and {hidden} more; --json lists all"] if hidden else lines

    @property
    def next_command(self) -> str:
        """Command for the next step; empty without one."""
        return ""

    def summary(self) -> str:
        """Amount and size of the content in one line; `would ...` for a dry run."""
        verb = "would write " if self.status == "planned" else ""
        return f"{verb}{counted(self.episodes, 'episode')}"

    def details(self) -> Sequence[str]:
        """More lines about the content."""
        return ()

    @classmethod
    def of_record(cls, recorded: Mapping[str, Any] | None, shown: Mapping[str, Any]) -> Self:
        """Result of a complete run, from its record."""
        names = {field.name for field in fields(cls)}
        items = ((name, value) for name, value in (recorded or {}).items() if name in names)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in items
        }
        return replace(cls(**values), **shown, status="already complete")
