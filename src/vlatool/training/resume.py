"""Run ownership and resume.

The run that owns a folder may continue in it; any other run is refused.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from vlatool.checkpoints.layout import BEST, CONFIG, DROPS, LATEST, METRICS, RunDir, is_run
from vlatool.config.base import ConfigModel
from vlatool.config.schema import execution_keys
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs import ownership
from vlatool.jobs.files import changed_files, is_occupied, remove_partial_files
from vlatool.jobs.record import OutputRecord, read_record
from vlatool.loading.base import DatasetInfo
from vlatool.models.published import WeightsOrigin
from vlatool.storage.remote import is_writable
from vlatool.storage.tree import file_names
from vlatool.storage.uri import is_remote, local_path, location, pinned_text
from vlatool.training.config import TrainConfig
from vlatool.training.plan import TrainPlan, budget_extension, make_plan

# Rule by which networks draw random numbers themselves; runs in which they draw none lack the key.
RANDOMNESS = "randomness"
BUDGET = TrainConfig.exclusive[0]
# Last parts of locations of data that say little, and suffixes of files that list data.
_COMMON_NAMES = {"data", "samples", "shards"}
_LIST_SUFFIXES = {".jsonl", ".json", ".yaml"}
_LONGEST_NAME = 80


def identity_keys(config: ConfigModel) -> dict[str, Any]:
    """Keys and values of a configuration that affect the weights, as nested sections."""
    chosen = config.recorded(exclude=config.no_effect_on_output)
    for name in chosen:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            chosen[name] = identity_keys(section)
    return chosen


Run = TypeVar("Run", bound=TrainConfig)


def with_local_folder(config: Run) -> Run:
    """The config with a local run folder; a remote `save_path` becomes the location of the copy."""
    if is_remote(location(config.save_path)):
        if config.remote_sync not in (None, config.save_path):
            raise UsageError(
                f"save_path is {config.save_path} and remote_sync is {config.remote_sync}",
                hint="give the remote location only as --remote-sync, and a local --output",
                code="usage.conflict",
            )
        default = TrainConfig.model_fields["save_path"].default
        update = {"save_path": default, "remote_sync": config.save_path}
        config = config.model_copy(update=update)
    if config.remote_sync is not None:
        path = location(config.remote_sync)
        scheme = str(path).partition("://")[0]
        if is_remote(path) and not is_writable(path):
            raise UsageError.at(
                path,
                f"{scheme}:// locations can only be read, so a run cannot be copied there",
                hint="choose a bucket, such as s3://bucket/runs, or a folder",
                code="usage.unsupported",
            )
    return config


def default_name(config: TrainConfig, stem: str = "") -> str:
    """Name of the run folder, if you gave none: what is trained, and on which data, such as
    policy-tiny-data. `stem`: a word for what is trained; by default the run whose weights it starts
    from, else the model type.
    """
    origin = config.init_from and WeightsOrigin.find(config.init_from).name
    words = [stem or origin or str(getattr(config.model, "type", ""))]
    for text in getattr(config.data, config.data_kind.folders_keys[0]):
        path = location(text)
        if path.suffix in _LIST_SUFFIXES:
            path = path.parent
        is_common = path.name in _COMMON_NAMES and path.parent.name
        words.append(path.parent.name if is_common else path.name)
    name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, words)))
    return name[:_LONGEST_NAME].strip("-.")


def named(config: Run, stem: str, reporter: Reporter) -> Run:
    """The config with a name. Notes how to continue an unfinished run that an earlier version named
    by the time of its start.
    """
    if config.name is not None:
        return config
    config = config.model_copy(update={"name": default_name(config, stem)})
    folder = local_path(config.save_path)
    if not local_run(config).root.exists() and folder.is_dir():
        end = f"-model_{getattr(config.model, 'type', '')}-lr_{config.hparams.lr}"
        for path in sorted(folder.glob(f"*{end}"), reverse=True):
            record = read_record(path) if is_run(path) else None
            if record is not None and record.command == _COMMAND and not record.complete:
                reporter.note(f"{path} is unfinished; --output {path} continues it")
                break
    return config


def local_run(config: TrainConfig) -> RunDir:
    """The folder of a named run."""
    assert config.name is not None
    return RunDir(local_path(config.save_path) / config.name)


_COMMAND = "train"
# Names of recorded options for messages, where the key says too little.
WORDS = {RANDOMNESS: "hparams.per_gpu_batch_size or processes:"}
# Files that change during the run.
_CHANGING = {METRICS, DROPS, LATEST, BEST}

RunStart = Literal["new", "resume", "extend", "replace"]


def earlier_run(run: RunDir, config: TrainConfig) -> OutputRecord | None:
    """The record of the run in a folder; None if it is free or may be replaced. Writes nothing."""
    run.check_no_files()
    return ownership.owner_of(
        run.root, _COMMAND, overwrite=config.overwrite, is_own=lambda: is_run(run.root)
    )


def plan_run(
    run: RunDir,
    config: TrainConfig,  # derived
    options: Mapping[str, Any],  # of the record: keys, data and versions that decide the weights
    # message about a budget that is larger than the given earlier one; else empty
    extension: Callable[[Mapping[str, Any]], str],
    reporter: Reporter,
) -> tuple[RunStart, OutputRecord]:
    """How a run would start in its folder, and its record. Writes nothing.

    `new`; `resume` or `extend` (to a larger budget) with the record of the run that is there; or
    `replace`, which removes that run. A run that has no step yet gives way to any other.
    """
    record = OutputRecord(_COMMAND, options, run_id=secrets.token_hex(4), words=WORDS)
    there = earlier_run(run, config)
    if there is None:
        return ("replace" if is_occupied(run.root) else "new"), record
    change = ""
    if not config.overwrite:
        budget = {key: there.options.get(key) for key in BUDGET}
        if any(budget.values()):
            change = extension(budget)
        if change:
            record = replace(record, options={**options, **budget})
    before = ownership.plan_output(
        run.root,
        record,
        overwrite=config.overwrite or not has_trained(run),
        hint=f"{ownership.OTHER_OUTPUT}; `vlatool finetune --from {run.root} --output OTHER` "
        "starts a new run with its weights",
    )
    if before is None:
        return ("replace" if is_occupied(run.root) else "new"), replace(record, options=options)
    if not change:
        return "resume", before
    reporter.note(f"{run.root}: {change}")
    # Other keys stay: the record still shows which ones its version did not have.
    budget = {key: options[key] for key in BUDGET}
    return "extend", replace(before, options={**before.options, **budget}, complete=False)


def prepare_run(
    run: RunDir,
    config: TrainConfig,
    start: RunStart,
    record: OutputRecord,
    save_assets: Callable[[], None],
    reporter: Reporter = NULL,
) -> None:
    """Prepares the folder of a planned run.

    Assets are written when the run starts; a resumed or complete run keeps them, unless one is
    missing or has changed. They equal the ones of the first start, as options and data are equal.
    """
    if start == "replace":
        run.clear_progress()
    if start != "resume":
        # Written first, so that a folder with any files in it has a record of its owner.
        record.save(run.root)
    remove_partial_files(run.root)
    run.repair_latest()
    run.update_best()
    damaged = changed_files(run.root)
    if damaged and has_trained(run):
        names = ", ".join(damaged)
        reporter.note(f"{run.root}: {names} was missing or changed and is written again")
    # Base models, of which some assets are copies, may be gone later.
    writes_assets = start in ("new", "replace") or bool({*damaged} - {CONFIG})
    before = _stamps(run)
    if writes_assets:
        save_assets()
    if start != "resume" or damaged:
        run.write_config(config.model_dump(mode="json", exclude={*execution_keys(type(config))}))
        # Other files in the folder are not listed.
        run.record_assets(dict(_stamps(run).items() - before.items()), replace=writes_assets)


def _stamps(run: RunDir) -> dict[str, tuple[int, int]]:
    """Inode and modification time by file name: both change when a file is replaced."""
    stats = {name: (run.root / name).stat() for name in file_names(run.root) - _CHANGING}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def has_trained(run: RunDir) -> bool:
    """True if the run has checkpoints or metrics; False if it failed before the first step."""
    return run.newest_folder() is not None or run.metrics.exists()


def with_base_config(config: TrainConfig, run: RunDir | None) -> TrainConfig:
    """The config, with the keys that its run derived from base models before.

    `run`: the run folder; None if the run has no name yet.

    A resumed run therefore reads no base model again.
    """
    config, _ = config.derive_static()
    if config.overwrite and run is not None:
        # Raises UsageError if initial weights are in the run folder that is replaced.
        root = run.root.resolve()
        model = config.model.model_dump(mode="json")
        for text in _strings({"init_from": config.init_from, "model": model}):
            if os.path.exists(text) and Path(text).resolve().is_relative_to(root):
                raise UsageError.at(
                    text,
                    f"is inside {run.root}, which --overwrite would replace",
                    hint="choose another --output",
                    code="usage.conflict",
                )
    record = _earlier_record(config, run)
    if record is None or started_run(config, run) is None:
        config.check_init()
        config = config.with_init_base_config()
    if record is None:
        return config
    try:
        before = type(config.model).model_validate(record.options["model"])
    except (KeyError, ValidationError):
        return config
    return config.model_copy(
        update={"model": config.model_type.restore_base_config(config.model, before)}
    )


def started_run(config: TrainConfig, run: RunDir | None) -> RunDir | None:
    """The run in a folder, if it has a checkpoint to resume from; None if it starts anew."""
    is_new = run is None or config.overwrite or run.newest_folder() is None
    return None if is_new else run


def _earlier_record(config: TrainConfig, run: RunDir | None) -> OutputRecord | None:
    """The record of the run that would be resumed; None if there is none."""
    if run is None or config.overwrite or not has_trained(run):
        return None
    record = read_record(run.root)
    return record if record is not None and record.command == _COMMAND else None


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)


def pinned_data(config: TrainConfig) -> TrainConfig:
    """The config with data locations pinned to their current versions."""
    pinned: dict[str, list[str]] = {}
    for key, texts in _data_locations(config).items():
        pinned[key] = [pinned_text(text) for text in texts]
    return config.model_copy(update={"data": config.data.model_copy(update=pinned)})


def data_versions(config: TrainConfig) -> dict[str, Any]:
    """Versions of the pinned data, for the record."""
    texts = chain.from_iterable(_data_locations(config).values())
    return ownership.versions_of(map(location, texts))


def _data_locations(config: TrainConfig) -> dict[str, list[str]]:
    """Keys of the data section that hold locations, with these locations."""
    keys = config.data_kind.folders_keys
    locations: dict[str, list[str]] = {}
    for key in (*keys, f"val_{keys[0]}"):
        texts = getattr(config.data, key, None)
        if isinstance(texts, list):
            locations[key] = texts
    return locations


def resolved(
    config: TrainConfig, before: RunDir | None, reporter: Reporter
) -> tuple[TrainConfig, DatasetInfo, Mapping[str, str]]:
    """The derived configuration, the metadata of its data, and the rule of each derived key.
    `before`: the run folder, local or remote; None if the run has no name yet.
    """
    config = pinned_data(with_base_config(config, before))
    info = config.load_info(reporter, started_run(config, before))
    config, rules = config.derive(info)
    return config, info, rules


def network_randomness(config: TrainConfig, plan: TrainPlan) -> dict[str, str]:
    """Text for the record: how networks draw random numbers for each micro-batch.

    Names the size of a micro-batch and the number of ranks. Empty if no network draws any.
    """
    import torch

    from vlatool.models.rng import draws_by_micro_batch

    with torch.device("meta"):
        parts = config.build()
    if not any(draws_by_micro_batch(part.module) for part in parts.values() if part.trained):
        return {}
    ranks = plan.global_batch // (plan.micro_batch * plan.accumulation)
    samples = counted(plan.micro_batch, "sample")
    return {RANDOMNESS: f"dropout by micro-batch of {samples} on each of {ranks} ranks"}


def planned_run(
    run: RunDir, config: TrainConfig, info: DatasetInfo, plan: TrainPlan, reporter: Reporter
) -> tuple[RunStart, OutputRecord]:
    """How a run would start in a local or remote folder, and its record. Writes nothing."""
    rule = network_randomness(config, plan)
    if rule:  # drawn inside the base model
        reporter.note(
            "with another hparams.per_gpu_batch_size or number of processes this run has other "
            f"weights: {rule[RANDOMNESS]}"
        )
    options = {**identity_keys(config), **info.fingerprint, **data_versions(config), **rule}
    ranks = config.distributed.world_size or 1
    extension = partial(budget_extension, config, info.datasets, ranks)
    return plan_run(run, config, options, extension, reporter)


def start_in(config: TrainConfig, run: RunDir, *, world_size: int) -> RunStart:
    """Returns what a run would do in a local or remote folder. Writes nothing. `world_size`: number
    of ranks.
    """
    count = {"world_size": world_size}
    processes = config.distributed.model_copy(update=count)
    hparams = config.hparams.model_copy(update=count)
    config = config.model_copy(update={"distributed": processes, "hparams": hparams})
    config, info, _ = resolved(config, run, NULL)
    plan = make_plan(config, info.datasets, world_size)
    return planned_run(run, config, info, plan, NULL)[0]
