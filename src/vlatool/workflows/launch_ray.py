"""Preprocessing on a Ray cluster: the file of a new cluster, or the driver on a running one."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlatool.config.base import check_required, execution_field, option
from vlatool.config.problems import Problem, config_error
from vlatool.config.schema import execution_keys
from vlatool.config.yaml_text import values_to_yaml
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.launching import ray_file
from vlatool.results import Result, outcome
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import DocumentError, read_document
from vlatool.storage.uri import is_remote, local_path, location
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

_USAGE = "vlatool launch ray preprocess [FORMAT] SOURCE... --output DIR [--ray-address ADDRESS]"


class RayPreprocessConfig(PreprocessConfig):
    """Preprocessing on a Ray cluster."""

    # Configurations are frozen, so a narrower type is sound.
    engine: Literal["ray"] = execution_field(  # pyright: ignore[reportIncompatibleVariableOverride]
        "ray", "ray: a Ray cluster."
    )
    ray_address: str | None = execution_field(None, "Address of a Ray cluster; null: write a file.")
    ray: ray_file.RayClusterConfig = option(
        ray_file.RayClusterConfig(), "A new Ray cluster.", affects_output=False
    )


@dataclass(frozen=True)
class RayClusterResult(Result):
    """File of a Ray cluster, and the commands to use it."""

    status: str  # `planned`, `written`, or `unchanged` for a file that was there
    cluster: str  # the file
    cluster_text: str
    config: str  # file with the configuration of the command, for the head of the cluster
    placeholders: Mapping[int, list[str]]  # by line; empty but for a dry run
    commands: tuple[str, ...]  # of the shell: start the cluster, run on it, stop it

    def lines(self) -> list[str]:
        if not self.is_planned:
            return [f"{self.cluster}: {self.status}; run:", *self.commands]
        left = sum(map(len, self.placeholders.values()))
        plan = f"would be written, with {left} placeholders"
        return [self.cluster_text, outcome(self.cluster, self.status, "", plan)]


def launch_ray_preprocess(
    config: RayPreprocessConfig, *, reporter: Reporter = NULL
) -> RayClusterResult | PreprocessResult:
    """Preprocesses on the cluster at `ray_address`; without one, writes the file of a new cluster.

    A file that exists stays; only its placeholders are filled in.

    Raises:
        ConfigError: A location is on this machine, where nodes of a new cluster cannot read it.
        UsageError: A placeholder is left in the file, which is written; or as for `preprocess`.
    """
    if config.ray_address is not None:
        return preprocess(config, reporter=reporter)
    check_required(config, _USAGE)
    problems: list[Problem] = []
    for key, text in _locations(config):
        if not is_remote(location(text)):  # nodes of a new cluster cannot see it
            message = f'"{key}" is {text}, a path of this machine'
            problems.append(Problem(key, "", message, code="config.invalid_value"))
    if problems:
        raise config_error(
            problems,
            hint="nodes cannot read it: copy it to a bucket and give s3://BUCKET/DIR; for a "
            "running cluster with a shared disk, give --ray-address",
        )
    cluster = local_path(config.ray.cluster)
    before = _text(cluster) if cluster.is_file() else None
    folder = cluster.absolute().parent
    new = ray_file.with_program(ray_file.template(), folder) if before is None else before
    text = ray_file.filled(new, config.ray)
    left = ray_file.left_placeholders(text)
    job = cluster.with_name(f"{cluster.stem}-preprocess.yaml")
    status = "planned" if config.dry_run else "unchanged" if text == before else "written"
    result = RayClusterResult(status, str(cluster), text, str(job), left, _commands(cluster, job))
    if config.dry_run:
        return result
    if text != before:
        write_text(cluster, text)
    if left:
        raise ray_file.placeholder_error(config.ray, left)
    ray_file.build_wheel(folder, text)
    hidden = {"ray", *execution_keys(PreprocessConfig)}
    values = config.model_dump(mode="json", exclude=hidden, exclude_unset=True)
    execution = {key: getattr(config, key) for key in ("on_error", "max_failures", "workers")}
    changed = {key: value for key, value in execution.items() if key in config.model_fields_set}
    write_text(job, values_to_yaml({**values, **changed}))
    return result


def _text(cluster: Path) -> str:
    """Text of a cluster file; raises UsageError if the file is something else."""
    try:
        return read_document(cluster)
    except DocumentError as error:
        raise UsageError(
            f"{cluster}: {error.reason}, so it is not a file for `ray up`",
            hint="give another file with --ray.cluster; if it does not exist, vlatool writes it",
            code="usage.bad_value",
            details={"path": str(cluster)},
        ) from error


def _locations(config: RayPreprocessConfig) -> Iterator[tuple[str, str]]:
    yield from (("sources", source) for source in config.sources)
    yield "output", config.output
    for key in sorted(config.source.location_keys):
        if text := getattr(config.source, key):
            yield f"source.{key}", text


def _commands(cluster: Path, job: Path) -> tuple[str, ...]:
    """Commands of Ray that start the cluster, run the driver on its head, and stop it."""
    file = shlex.quote(str(cluster))
    driver = f"vlatool preprocess --config {shlex.quote(job.name)} --engine ray --ray-address auto"
    return (
        f"ray up {file}",
        f"ray rsync-up {file} {shlex.quote(str(job))} {shlex.quote(job.name)}",
        f"ray exec {file} --tmux {shlex.quote(driver)}",
        f"ray down {file}",
    )
