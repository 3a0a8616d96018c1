"""Run ownership and resume.

The run that owns a folder may continue in it; any other run is refused.
"""

import json
import os
import re
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from vlatool.checkpoints.layout import BEST, CONFIG, DROPS, LATEST, METRICS, RunDir, is_run
from vlatool.config.base import ConfigModel
from vlatool.config.coerce import value_text
from vlatool.config.resolve import load_config
from vlatool.config.schema import execution_keys
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs import ownership
from vlatool.jobs.files import FileEntry, remove_partial_files
from vlatool.jobs.record import OutputRecord, read_record
from vlatool.loading.base import DatasetInfo
from vlatool.models.published import WeightsOrigin
from vlatool.storage.remote import is_writable
from vlatool.storage.tree import file_names, sha256_of
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
# Digests, which are left out of messages.
_DIGEST = re.compile(r"(, )?\b[0-9a-f]{16,}\b")


def identity_keys(config: ConfigModel) -> dict[str, Any]:
    """Keys and values of a configuration that affect the weights, as nested sections."""
    chosen = config.recorded(exclude=config.no_effect_on_output)
    for name in chosen:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            chosen[name] = identity_keys(section)
    return chosen


def run_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """Texts about configuration keys, data and versions that differ, without digests."""
    if not config.overwrite:
        ownership.check_versions(before, now)
    versions = ownership.changed_versions(before, now)
    old = ownership.without_versions(before)
    new = ownership.without_versions(now)
    texts: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if key in type(config).model_fields:
            continue
        old_value = old.pop(key, None)
        new_value = new.pop(key, None)
        if old_value != new_value:
            texts.append(_difference_text(key, old_value, new_value))
    # The budget, seldom the reason, comes last.
    options = ownership.option_differences(old, new)
    texts += sorted(options, key=lambda text: text.startswith(BUDGET))
    return [*texts, *versions]


def _difference_text(key: str, before: object, now: object) -> str:
    old = _without_digests(before)
    new = _without_digests(now)
    name = f"hparams.per_gpu_batch_size or processes, {key}" if key == RANDOMNESS else key
    if old == new:
        return f"{name}: other contents"
    return f"{name}: {old} (now {new})"


def _without_digests(value: object) -> str:
    """Text of a value; `some` if the value is only a digest."""
    return _DIGEST.sub("", str(value or "none")) or "some"


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
_OTHER_OUTPUT = "choose another --output, or replace the run with --overwrite"
# Files that change during the run.
_CHANGING = {METRICS, DROPS, LATEST, BEST}

RunStart = Literal["new", "resume", "extend", "replace"]


def plan_run(
    run: RunDir,
    config: TrainConfig,  # derived
    # of the data, with versions and the rule of `network_randomness`
    fingerprint: Mapping[str, Any],
    # True if the budget is larger than that of the given earlier one
    extends_budget: Callable[[Mapping[str, Any]], bool],
) -> tuple[RunStart, OutputRecord]:
    """How a run would start in its folder, and its record. Writes nothing.

    `new`; `resume` or `extend` (to a larger budget) with the record of the run that is there; or
    `replace`, which removes that run.
    """
    options = {**identity_keys(config), **fingerprint}
    record = OutputRecord(_COMMAND, options, run_id=secrets.token_hex(4))
    before = earlier_run(run, config)
    if before is None:
        return ("replace" if is_run(run.root) else "new"), record
    differences = run_differences(before.options, options, config)
    if not differences and run.latest() is not None:
        return "resume", before
    if config.overwrite:  # `latest` raises for a damaged run, which this replaces
        return ("replace" if differences else "new"), record
    changed = _changed_options(before.options, options)
    hint = _OTHER_OUTPUT
    if run.latest() is not None:
        budget = {key: before.options.get(key) for key in BUDGET}
        if changed <= {*BUDGET} and extends_budget(budget):
            return "extend", before
        if not changed & type(config).model_fields.keys() - {*BUDGET}:
            hint = _other_data_hint(run, config)
    if has_trained(run):
        ownership.check_no_differences(run.root, "with other options", differences, hint)
    return ("replace" if differences else "new"), record


def _changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Names of the options that differ; `now` has the form that JSON gives back."""
    now = json.loads(json.dumps(now, default=str))
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def _other_data_hint(run: RunDir, config: TrainConfig) -> str:
    """Hint if only the data of a run have changed, for example because you added episodes."""
    key = config.data_kind.folders_keys[0]
    words = ["vlatool", "finetune", "--from", str(run.root), "--config", str(run.config)]
    words += [f"--data.{key}", value_text(getattr(config.data, key))]
    line = shlex.join([*words, "--output", f"{run.root}-2"])
    return f"a run keeps its data; this starts a new one on these, with its weights: {line}"


def prepare_run(
    run: RunDir,
    config: TrainConfig,
    start: RunStart,
    record: OutputRecord,
    save_assets: Callable[[], None],
) -> OutputRecord:
    """Prepares the folder of a planned run; returns its record.

    Assets are written once, when the run starts; a resumed or complete run keeps them.
    """
    if start == "extend":
        # Other keys stay: the record still shows which ones its version did not have.
        identity = identity_keys(config)
        budget = {key: identity[key] for key in BUDGET}
        record = replace(record, options={**record.options, **budget}, complete=False)
    if start == "replace":
        reset_run(run, record)
    if start != "resume":
        # Written first, so that a folder with any files in it has a record of its owner.
        record.save(run.root)
    remove_partial_files(run.root)
    if start == "extend":
        _write_config(run, config)
        if _listed_assets(run):
            run.record_assets([CONFIG])
    elif start != "resume":
        _write_assets(run, config, save_assets)
    return record


def _write_assets(run: RunDir, config: TrainConfig, save_assets: Callable[[], None]) -> None:
    """Writes the assets and the config and lists them; other files in the folder are not listed."""
    before = _stamps(run)
    save_assets()
    _write_config(run, config)
    run.record_assets(dict(_stamps(run).items() - before.items()), replace=True)


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


def earlier_run(run: RunDir, config: TrainConfig) -> OutputRecord | None:
    """The record of the run in a folder; None if it is free or may be replaced. Writes nothing."""
    before = ownership.owner_of(
        run.root, _COMMAND, overwrite=config.overwrite, is_own=lambda: is_run(run.root)
    )
    if before is None:
        return None
    if not (before.options or config.overwrite):
        raise UsageError.at(
            run.root,
            "holds the remains of a run, because an earlier --overwrite was interrupted",
            hint="run the command with --overwrite again, or choose another --output",
            code="usage.output_differs",
        )
    run.check_no_files()
    return before


def repair_run(run: RunDir, config: TrainConfig, save_assets: Callable[[], None]) -> list[str]:
    """Rewrites missing or changed files of a resumed run, other than checkpoints.

    Returns names of the rewritten files.

    The files equal the files of the first start, because options and data are equal.
    """
    repaired: list[str] = []
    if run.repair_latest():
        repaired.append(run.latest_file.name)
    run.update_best()
    listed = _listed_assets(run)
    if listed is None:
        _write_assets(run, config, save_assets)
        return [*repaired, "the list of assets"]
    changed: list[str] = []
    for entry in listed:
        path = run.root / entry.path
        if not path.is_file() or sha256_of(path) != entry.sha256:
            changed.append(entry.path)
    if CONFIG in changed or not _config_matches(run, config):
        _write_config(run, config)
        repaired.append(CONFIG)
    damage = ", ".join(sorted(set(changed) - {CONFIG}))
    if not damage:
        try:
            config.data_kind.load_assets(config.data, run.root)
        except DataError as error:
            damage = f"the assets of the data ({error.message})"
    if damage:
        save_assets()
        repaired.append(damage)
    if repaired and listed:
        names = [entry.path for entry in listed if (run.root / entry.path).is_file()]
        run.record_assets(names, replace=True)
    return repaired


def _listed_assets(run: RunDir) -> list[FileEntry] | None:
    """The assets that the run lists; None if the list is damaged."""
    try:
        return run.recorded_files()
    except DataError:
        return None


def _config_matches(run: RunDir, config: TrainConfig) -> bool:
    """True if config.yaml is readable and has the identity keys of the config."""
    try:
        run.config_tree()  # raises for an empty file, which would be all defaults
        stored = load_config(TrainConfig, files=[str(run.config)]).config
    except VlatoolError:
        return False
    return identity_keys(stored) == identity_keys(config)


def complete_run(run: RunDir, record: OutputRecord, result: Mapping[str, Any]) -> None:
    if not record.complete:
        replace(record, complete=True, result=result).save(run.root)


def _write_config(run: RunDir, config: TrainConfig) -> None:
    run.write_config(config.model_dump(mode="json", exclude={*execution_keys(type(config))}))


def reset_run(run: RunDir, record: OutputRecord) -> None:
    """Removes the progress of a run; until this is complete, its record has no options."""
    replace(record, options={}).save(run.root)
    run.clear_progress()


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


def run_identity(
    config: TrainConfig, info: DatasetInfo, plan: TrainPlan, output: Path, reporter: Reporter
) -> tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], bool]]:
    """Fingerprint of a run, and a function that tells whether its budget extends an earlier one."""

    def extends_budget(before: Mapping[str, Any]) -> bool:
        change = budget_extension(config, info.datasets, config.distributed.world_size or 1, before)
        if change:
            reporter.note(f"{output}: {change}")
        return bool(change)

    rule = network_randomness(config, plan)
    if rule:  # drawn inside the base model
        reporter.note(
            "with another hparams.per_gpu_batch_size or number of processes this run has other "
            f"weights: {rule[RANDOMNESS]}"
        )
    return {**info.fingerprint, **data_versions(config), **rule}, extends_budget


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
    return plan_run(run, config, *run_identity(config, info, plan, run.root, NULL))[0]
