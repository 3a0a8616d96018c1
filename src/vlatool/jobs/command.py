"""Keys of how a job is run, the same for every command that is one; none changes the bytes."""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field

from vlatool.jobs.job import JobOptions
from vlatool.parallel.engines import Engine, make_executor
from vlatool.parallel.executor import Executor

JOB_KEYS = ("overwrite", "dry_run", "on_error", "max_failures")
ENGINE = ("engine", "workers", "ray_address", "ray_num_cpus")

OnError = Annotated[
    Literal["skip", "stop"],
    Field(description="skip keeps the good episodes, stop ends at the first bad one."),
]
MaxFailures = Annotated[int | None, Field(ge=0, description="End when more episodes failed.")]
Overwrite = Annotated[bool, Field(description="Replace an output made with other options.")]
DryRun = Annotated[bool, Field(description="Say what would be done and write nothing.")]
EngineName = Annotated[Engine, Field(description="local processes, or a Ray cluster.")]
Workers = Annotated[int | None, Field(ge=1, description="Processes; null for one per processor.")]
RayAddress = Annotated[
    str | None,
    Field(description="Cluster to join with --engine ray; null for a private one."),
]
RayProcessors = Annotated[
    int | None,
    Field(ge=1, description="Processors of a private Ray cluster; null for --workers."),
]


class JobConfig(Protocol):
    """A configuration with the keys of `JOB_KEYS`."""

    on_error: OnError
    max_failures: MaxFailures
    overwrite: Overwrite
    dry_run: DryRun


class EngineConfig(JobConfig, Protocol):
    """One with those of `ENGINE` besides."""

    engine: EngineName
    workers: Workers
    ray_address: RayAddress
    ray_num_cpus: RayProcessors


def job_options(config: JobConfig) -> JobOptions:
    """What a job is told of it."""
    return JobOptions(config.overwrite, config.dry_run, config.on_error, config.max_failures)


def executor_of(config: EngineConfig, preload: Sequence[str] = ()) -> Executor:
    """What does the work.

    Args:
        config: Where.
        preload: Modules that local processes import when they start.
    """
    if config.dry_run:
        return make_executor(1)
    if config.engine == "ray":
        cpus = config.ray_num_cpus or config.workers
        return make_executor(cpus, engine="ray", ray_address=config.ray_address)
    return make_executor(config.workers, preload=preload)
