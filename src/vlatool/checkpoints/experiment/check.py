"""Checks of an experiment: configuration, statistics, and files of checkpoints."""

import pickletools
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.checkpoints.experiment.layout import FILES, Experiment, differing_files
from vlatool.config.resolve import ReadOptions, load_config
from vlatool.datasets.stats.layout import number_array
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.jobs.record import read_record
from vlatool.plugins import RUN_CONFIGS
from vlatool.recordings.check import CheckOptions, check_record_and_files, read_error
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.uri import can_list

_COPY = "copy the experiment again"

EXPERIMENT = FindingCodes(
    "experiment",
    broken_config=error(
        "A configuration file of an experiment is missing, broken or invalid.", _COPY
    ),
    other_config=warning(
        "A configuration file differs from its section of config.yaml, which is used.", _COPY
    ),
    broken_statistics=error(
        "stats.json of an experiment is missing or broken, or lacks a field of the policy.",
        _COPY,
    ),
    broken_options=error(
        "preprocessing_config.yaml of an experiment is missing or broken.",
        "copy the file from the training data next to config.yaml",
    ),
    not_listed=info("A web server does not list folders: the checkpoints are not checked."),
    no_checkpoint=error("There is neither checkpoint_N.pt nor ema_N.pt.", _COPY),
    no_average=warning("ema.enabled is true, but the newest checkpoint has no ema_N.pt.", _COPY),
    broken_weights=error(
        "A file of a checkpoint is truncated or damaged.", "use another checkpoint"
    ),
    unsafe_weights=error(
        "A file of a checkpoint refers to code, and is not opened.", "use another checkpoint"
    ),
)

FINDINGS = (EXPERIMENT,)
# Modules that a file of tensors refers to.
_MODULES = ("torch", "collections")


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    if location.is_file():
        options.counts.add(files=1)
        yield from _check_weights(location, options)
        return
    if read_record(location) is not None:
        has_ended = yield from check_record_and_files(location, location, options)
        if not has_ended:
            return
    experiment = Experiment(location)
    options.counts.add(files=sum((location / name).is_file() for name in FILES))
    config: list[Any] = []
    yield from _check_config(experiment, config)
    if config:
        read = partial(_check_statistics, experiment, config[0].data)
        yield from read_error(EXPERIMENT, "broken_statistics", read, location)
    yield from read_error(EXPERIMENT, "broken_options", experiment.options, location)
    if not can_list(location):
        yield EXPERIMENT.at("not_listed", location, "cannot be listed; no checkpoint is checked")
        return
    is_averaged = bool(config) and config[0].ema.enabled
    yield from _check_checkpoints(experiment, options, is_averaged=is_averaged)


def _check_config(experiment: Experiment, configs: list[Any]) -> Iterator[Finding]:
    """Yields the findings of the configuration; appends the configuration if it is valid."""
    path = str(experiment.config)
    lenient = ReadOptions(compat=True)
    try:
        for name in differing_files(experiment):
            problem = f"differs from its section of {path}"
            yield EXPERIMENT.at("other_config", experiment.root / name, problem)
        schema = RUN_CONFIGS.get("train")
        files = experiment.config_files
        configs.append(load_config(schema, files=files, read_options=lenient).config)
    except VlatoolError as error:
        place = str(error.details.get("path", path))
        message = error.message if place in error.message else f"{path}: {error.message}"
        yield EXPERIMENT("broken_config", message, path=place)


def _check_statistics(experiment: Experiment, data: Any) -> None:
    """Raises DataError if statistics of a field are missing, damaged or not finite."""
    statistics = experiment.statistics()
    for name in (*data.action_fields, *data.proprioception_fields):
        for key in ("mean", "std"):
            values = number_array(statistics.get(name, {}).get(key))
            if values is None or not np.isfinite(values).all():
                raise DataError(f"{experiment.root}: the statistics have no finite {key} of {name}")


def _check_checkpoints(
    experiment: Experiment, options: CheckOptions, *, is_averaged: bool
) -> Iterator[Finding]:
    checkpoints = experiment.checkpoints()
    if not checkpoints:
        yield EXPERIMENT.at("no_checkpoint", experiment.root, "has no checkpoint")
        return
    newest = checkpoints[-1]
    if is_averaged and not newest.averaged.is_file():
        problem = "is missing, although ema.enabled is true"
        yield EXPERIMENT.at("no_average", newest.averaged, problem)
    for checkpoint in checkpoints:
        paths = (checkpoint.raw, checkpoint.averaged, checkpoint.optimizer)
        for path in paths:
            if path.is_file():
                yield from _check_weights(path, options)


def _check_weights(path: Path, options: CheckOptions) -> Iterator[Finding]:
    """Compares the checksums in a file of tensors, and looks for names of code; runs nothing."""
    broken = None
    code: list[str] = []
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            if not options.is_quick:
                broken = archive.testzip()
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    code += _code_names(archive.read(name))
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        yield EXPERIMENT.at("broken_weights", path, error)
        return
    options.counts.add(bytes=path.stat().st_size)
    if broken is not None:
        yield EXPERIMENT.at("broken_weights", path, f"{broken} does not match its checksum")
    elif code:
        yield EXPERIMENT.at("unsafe_weights", path, f"refers to {code[0]}")


def _code_names(pickle: bytes) -> Iterator[str]:
    """Yields names in a pickle that a file of tensors does not need."""
    for operation, argument, _ in pickletools.genops(pickle):
        name = str(argument).replace(" ", ".")
        if operation.name == "GLOBAL" and name.partition(".")[0] not in _MODULES:
            yield name
        elif operation.name == "STACK_GLOBAL":  # torch writes none
            yield "a name that is computed"
