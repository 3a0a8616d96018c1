"""Config keys that control the execution of a job, shared by all jobs. None changes the output."""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field

from vlatool.jobs.executor import Executor, ProcessExecutor, SerialExecutor, default_workers
from vlatool.jobs.job import JobOptions

JOB_KEYS = ("overwrite", "dry_run", "on_error", "max_failures")
Engine = Literal["local", "ray"]
ENGINE = ("engine", "workers", "ray_address", "ray_num_cpus")

OnError = Annotated[
    Literal["skip", "stop"],
    Field(description="skip: leave out episodes that fail; stop: end at the first that fails."),
]
MaxFailures = Annotated[int | None, Field(ge=0, description="Stop when more than N episodes fail.")]
Overwrite = Annotated[bool, Field(description="Replace an output made with other options.")]
DryRun = Annotated[bool, Field(description="Report what would be done and write nothing.")]
EngineName = Annotated[
    Engine, Field(description="local: processes on this machine; ray: a Ray cluster.")
]
Workers = Annotated[
    int | None, Field(ge=1, description="Number of worker processes; null: one per CPU.")
]
RayAddress = Annotated[
    str | None,
    Field(description="Address of the Ray cluster to join; null: start a private one."),
]
RayProcessors = Annotated[
    int | None,
    Field(ge=1, description="CPUs of a private Ray cluster; null: the value of --workers."),
]


class JobConfig(Protocol):
    """Config with the keys of `JOB_KEYS`."""

    on_error: OnError
    max_failures: MaxFailures
    overwrite: Overwrite
    dry_run: DryRun


class EngineConfig(JobConfig, Protocol):
    """Config with the keys of `JOB_KEYS` and `ENGINE`."""

    engine: EngineName
    workers: Workers
    ray_address: RayAddress
    ray_num_cpus: RayProcessors


def job_options(config: JobConfig) -> JobOptions:
    """Options of a job, from its config."""
    return JobOptions(config.overwrite, config.dry_run, config.on_error, config.max_failures)


def executor_of(config: EngineConfig, preload: Sequence[str] = ()) -> Executor:
    """Executor that a config asks for.

    Args:
        config: The config.
        preload: Modules that local processes import when they start.
    """
    if config.dry_run:
        return make_executor(1)
    if config.engine == "ray":
        cpus = config.ray_num_cpus or config.workers
        return make_executor(cpus, engine="ray", ray_address=config.ray_address)
    return make_executor(config.workers, preload=preload)


def make_executor(
    workers: int | None,
    *,
    engine: Engine = "local",
    ray_address: str | None = None,
    preload: Sequence[str] = (),
) -> Executor:
    """Creates an executor; one local worker needs no process pool.

    Args:
        workers: Number of processes; None for one per processor (with Ray: of the cluster).
        engine: `local` or `ray`.
        ray_address: Cluster to join; None starts a private one on this machine.
        preload: Modules that local workers import when they start.
    """
    if engine == "ray":
        from vlatool.jobs.ray_executor import RayExecutor

        return RayExecutor(workers=workers, address=ray_address)
    count = workers or default_workers()
    return SerialExecutor() if count <= 1 else ProcessExecutor(count, preload)
