"""Options of the published training command of FUTURE-VLA, by ms-swift; light.

Source: reference/future-vla-model 3.3.
"""

from collections.abc import Mapping
from typing import Any

from vlatool.config.base import Converted, Ignored, Names

# Processes of the published launch; the published batch size is per process.
_PROCESSES = 8
_FREEZE = ("model.freeze_vision", "model.freeze_mergers", "model.freeze_language")
# Defaults of ms-swift for adapters.
_LORA: Mapping[str, Any] = {
    "model.lora.rank": 8,
    "model.lora.alpha": 32.0,
    "model.freeze_vision": True,
    "model.freeze_mergers": True,
}
_PRECISIONS = {"bfloat16": "amp_bfloat16", "float32": "float32"}


def _parts(kind: Any) -> Mapping[str, Any]:
    if kind not in ("full", "lora"):
        raise ValueError("all parameters are trained (full), or adapters (lora)")
    return _LORA if kind == "lora" else {"model.lora.rank": 0}


def _unfrozen(pattern: Any) -> Mapping[str, Any]:
    if pattern not in (".*", ".+", "", None):
        keys = "model.freeze_dino, freeze_vision, freeze_mergers or freeze_language"
        raise ValueError(f"set {keys}")
    return dict.fromkeys(_FREEZE, False)


def _batch_sizes(size: Any) -> Mapping[str, Any]:
    total = {"hparams.global_batch_size": size * _PROCESSES} if isinstance(size, int) else {}
    return {"hparams.per_gpu_batch_size": size, **total}


def _precision(name: Any) -> Mapping[str, Any]:
    # Weights and optimizer keep float32, so that small updates are not lost.
    if name not in _PRECISIONS:
        raise ValueError("float16 needs a loss scaler; use bfloat16 or float32")
    return {"hparams.precision": _PRECISIONS[name]}


def _checkpoint(location: Any) -> Mapping[str, Any]:
    """A checkpoint to go on with; its weights replace those of `--model`."""
    return {"init_from": location, "init_weights_only": False}


NAMES: Names = {
    "dataset": "data.folders",
    "num_train_epochs": "num_epochs",
    "learning_rate": "hparams.lr",
    "warmup_steps": "hparams.warmup",
    "save_steps": "save_every_n_steps",
    "logging_steps": "log_every_n_steps",
    "dataloader_num_workers": "data.num_workers",
    "gradient_checkpointing": "hparams.grad_checkpointing",
    "freeze_vit": _FREEZE[0],
    "freeze_aligner": _FREEZE[1],
    "freeze_llm": _FREEZE[2],
    "trainable_parameters_regex": Converted(_unfrozen),
    "per_device_train_batch_size": Converted(_batch_sizes),
    "resume_from_checkpoint": Converted(_checkpoint),
    "torch_dtype": Converted(_precision),
    "train_type": Converted(_parts, preset="future-vla-libero"),
    "ddp_find_unused_parameters": Ignored(
        "not needed: parameters without a use are frozen", is_switch=True
    ),
    "gradient_checkpointing_kwargs": Ignored("only the variant without reentrance is supported"),
    "model_author": Ignored("it names the author in a data set that is not used here"),
    "model_name": Ignored("it names the model in a data set that is not used here"),
}
