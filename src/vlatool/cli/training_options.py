"""Command-line options of a training configuration, shared by `train` and `resolve-config`."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlatool.cli.config_command import ConfigSpec, OptionAlias, schema_at
from vlatool.errors import UsageError


def expand_data(folders: list[str]) -> Mapping[str, Any]:
    """Value of `--data`: folders of training data. The data kind maps `folders` to its own key."""
    return {"data.folders": folders}


def expand_run(texts: list[str]) -> Mapping[str, Any]:
    """Value of `--output`: a run folder, split into `save_path` and `name`."""
    # As text: the command itself checks the scheme.
    parent, _, name = texts[-1].rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise UsageError(
            f"--output {texts[-1]!r} is not the name of a folder",
            hint="write --output runs/NAME",
            code="usage.output",
            details={"output": texts[-1]},
        )
    root = "/" if texts[-1].startswith("/") else "."
    return {"save_path": parent or root, "name": name}


def expand_init_from(texts: list[str]) -> Mapping[str, Any]:
    """Value of `--from`: the weights of a checkpoint, without its trainer state."""
    return {"model.resume_from_checkpoint": texts[-1], "model.resume_weights_only": True}


def _scalar(
    key: str, help_text: str, *, is_switch: bool = False, is_hidden: bool = False
) -> OptionAlias:
    def expand(texts: list[str]) -> Mapping[str, Any]:
        return {key: texts[-1]}

    metavar = "" if is_switch else "N"
    return OptionAlias(expand, metavar, help_text, is_switch=is_switch, is_hidden=is_hidden)


def _hidden_aliases(keys: Sequence[str], switches: Sequence[str]) -> Mapping[str, OptionAlias]:
    names = (*keys, *switches)
    return {key: _scalar(key, "", is_switch=key in switches, is_hidden=True) for key in names}


DATA = OptionAlias(expand_data, "DIR", "Folder of training data; repeatable.")
INIT_FROM = OptionAlias(
    expand_init_from, "CKPT", "Run, checkpoint or published file with the initial weights."
)
RUN = OptionAlias(expand_run, "RUN", "Folder of the run.", short="-o")
BUDGET: Mapping[str, OptionAlias] = {
    "total_train_samples": _scalar("total_train_samples", "Budget in samples."),
    "num_epochs": _scalar("num_epochs", "Budget in epochs."),
    "total_train_steps": _scalar("total_train_steps", "Budget in optimizer steps."),
    "num_checkpoints": _scalar("num_checkpoints", "Number of checkpoints, evenly spaced."),
}
SWITCHES: Mapping[str, OptionAlias] = {
    "dry_run": _scalar("dry_run", "Report what would be done and write nothing.", is_switch=True),
    "overwrite": _scalar("overwrite", "Replace a run made with other options.", is_switch=True),
}
# Options of the published command; here, `resolve-config` does the same.
RESOLVING: Mapping[str, OptionAlias] = {
    "resolve_configs": _scalar("resolve_configs", "", is_switch=True, is_hidden=True),
    "resolve_configs_path": _scalar("resolve_configs_path", "", is_hidden=True),
}

# Other keys outside the sections; most of them are options of the published command.
OTHER_KEYS = _hidden_aliases(
    (
        "name",
        "save_path",
        "save_every_n_steps",
        "max_checkpoint_limit",
        "keep_every_n_steps",
        "log_every_n_steps",
        "images_every_n_steps",
        "total_val_samples",
        "val_every_n_checkpoints",
        "wandb_entity",
        "wandb_project_name",
        "wandb_tags",
        "log_level",
        "remote_sync",
        "remote_sync_fixed_path",
    ),
    switches=("wandb", "db_logging"),
)


def model_types() -> Sequence[str]:
    """Names of the registered model types."""
    from vlatool.plugins import MODELS

    return MODELS.names()


def _data_kinds() -> Sequence[str]:
    from vlatool.plugins import DATA_KINDS

    return DATA_KINDS.names()


def training_spec(option_aliases: Mapping[str, OptionAlias]) -> ConfigSpec:
    """Command-line form of a training configuration, with the named options of one command."""
    return ConfigSpec(
        schema_at("vlatool.training.config:TrainConfig"),
        is_flat=False,
        option_aliases={"data": DATA, **option_aliases, **OTHER_KEYS},
        note=lambda: "Other keys: --section.key VALUE or --set key=value; --keys lists them.",
        values={"model.type": model_types, "data.type": _data_kinds},
        presets=("runs", "models", "models/denoisers", "data", "hparams"),
    )
