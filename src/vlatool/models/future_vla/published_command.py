"""Converts options of the published training command of FUTURE-VLA to our keys; light.

Source: reference/future-vla-model 3.3.
"""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from vlatool.config.coerce import Node, from_value, merge, plain, without
from vlatool.config.problems import Problem, config_error
from vlatool.config.resolve import ConvertedConfig

# Processes of the published launch; the published batch size is per process.
_PROCESSES = 8
_PRESET = "future-vla-libero"
# Published option to our key, for values that stay the same.
_SAME: Mapping[str, str] = {
    "dataset": "data.folders",
    "num_train_epochs": "num_epochs",
    "learning_rate": "hparams.lr",
    "warmup_steps": "hparams.warmup",
    "save_steps": "save_every_n_steps",
    "logging_steps": "log_every_n_steps",
    "dataloader_num_workers": "data.num_workers",
    "gradient_checkpointing": "hparams.grad_checkpointing",
}
_FREEZE: Mapping[str, str] = {
    "freeze_vit": "model.freeze_vision",
    "freeze_aligner": "model.freeze_mergers",
    "freeze_llm": "model.freeze_language",
}
# Defaults of ms-swift for adapters.
_LORA: Mapping[str, Any] = {
    "model.lora.rank": 8,
    "model.lora.alpha": 32.0,
    "model.freeze_vision": True,
    "model.freeze_mergers": True,
}
_PRECISIONS = {"bfloat16": "amp_bfloat16", "float32": "float32"}
# Without an effect here: section `model` lists the reasons.
WITHOUT_EFFECT: Mapping[str, str] = {
    "ddp_find_unused_parameters": "not needed: parameters without a use are frozen",
    "gradient_checkpointing_kwargs": "only the variant without reentrance is supported",
    "model_author": "it names the author in a data set that is not used here",
    "model_name": "it names the model in a data set that is not used here",
    "torch_dtype": "weights and optimizer keep float32, so that small updates are not lost; "
    "bfloat16 is for computing (hparams.precision)",
}
# Options of the command line; True for those that need no value.
OPTIONS: Mapping[str, bool] = {
    **dict.fromkeys([*_SAME, *WITHOUT_EFFECT], False),
    **dict.fromkeys(_FREEZE, True),
    "gradient_checkpointing": True,
    "ddp_find_unused_parameters": True,
    "output_dir": False,
    "per_device_train_batch_size": False,
    "resume_from_checkpoint": False,
    "train_type": False,
    "trainable_parameters_regex": False,
}
# The type of training has defaults for others; all parameters are chosen last, as published.
_ORDER: Mapping[str, int] = {"train_type": 0, "trainable_parameters_regex": 2}
_ALL_PARAMETERS = (".*", ".+", "")


def translate(tree: Node, below: Node) -> ConvertedConfig | None:
    """Converts the options of a published command; None if there are none."""
    if not isinstance(tree.value, dict):
        return None
    published: dict[str, Node] = {}
    for key, node in tree.value.items():
        is_section = key == "dataset" and isinstance(node.value, dict)
        if key in OPTIONS and not is_section:
            published[key] = node
    if not published:
        return None
    _check_values(published)
    converted = Node({}, tree.origin)
    rest = tree
    for key, node in sorted(published.items(), key=lambda item: _ORDER.get(item[0], 1)):
        rest = without(rest, [key])
        for name, value in _converted(key, node).items():
            converted = merge(converted, _at(name, value))
    if "resume_from_checkpoint" in published:  # its weights replace those of --model
        rest = without(rest, ["init_from"])
    implied = _PRESET if "train_type" in published else ""
    return ConvertedConfig(merge(converted, rest), preset=implied)


def _converted(key: str, node: Node) -> Mapping[str, Node]:
    if key in _RULES:
        return {name: from_value(v, node.origin) for name, v in _RULES[key](plain(node)).items()}
    names = {**_SAME, **_FREEZE, **{name: f"model.{name}" for name in WITHOUT_EFFECT}}
    return {names[key]: node}


def _batch_sizes(size: Any) -> Mapping[str, Any]:
    total = {"hparams.global_batch_size": size * _PROCESSES} if isinstance(size, int) else {}
    return {"hparams.per_gpu_batch_size": size, **total}


def _folder(text: Any) -> Mapping[str, Any]:
    folder = PurePosixPath(str(text))
    return {"save_path": str(folder.parent), "name": folder.name}


def _precision(name: Any) -> Mapping[str, Any]:
    note = {"model.torch_dtype": name} if name == "bfloat16" else {}
    return {"hparams.precision": _PRECISIONS[str(name)], **note}


_RULES: Mapping[str, Callable[[Any], Mapping[str, Any]]] = {
    "output_dir": _folder,
    "per_device_train_batch_size": _batch_sizes,
    "resume_from_checkpoint": lambda location: {"init_from": location, "init_weights_only": False},
    "torch_dtype": _precision,
    "train_type": lambda name: _LORA if name == "lora" else {"model.lora.rank": 0},
    "trainable_parameters_regex": lambda _: dict.fromkeys(_FREEZE.values(), False),
}
# Options with few possible values: these, and the reason for the error with others.
_POSSIBLE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "train_type": (("full", "lora"), "all parameters are trained, or adapters"),
    "torch_dtype": (tuple(_PRECISIONS), "float16 needs a loss scaler"),
    "trainable_parameters_regex": (
        _ALL_PARAMETERS,
        "set model.freeze_dino, freeze_vision, freeze_mergers or freeze_language",
    ),
}


def _check_values(published: Mapping[str, Node]) -> None:
    problems: list[Problem] = []
    for key, (values, reason) in _POSSIBLE.items():
        if key in published and str(plain(published[key])) not in values:
            message = f'"{key}" is {plain(published[key])!r}, which is not supported: {reason}'
            origin = published[key].origin
            problems.append(Problem(key, origin, message, code="config.unsupported"))
    folder = published.get("output_dir")
    if folder is not None and PurePosixPath(str(plain(folder))).name in ("", ".."):
        message = f'"output_dir" is {plain(folder)!r}, which is not the name of a folder'
        problem = Problem("output_dir", folder.origin, message, code="config.unsupported")
        raise config_error([problem], hint="write --output_dir runs/NAME")
    if problems:
        key = problems[0].key
        values = ", ".join(filter(None, _POSSIBLE[key][0]))
        raise config_error(problems, hint=f"set --{key} to {values}, or leave it out")


def _at(key: str, value: Node) -> Node:
    for name in reversed(key.split(".")):
        value = Node({name: value}, value.origin)
    return value
