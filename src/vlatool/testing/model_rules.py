"""Checks of a model type that need no run: config, parts, batches, losses."""

import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.config.base import ConfigModel
from vlatool.config.resolve import config_of
from vlatool.events import NULL
from vlatool.loading.base import DataKind, DatasetInfo, LoadingConfig, data_kind
from vlatool.models.base import Loss, ModelType, Objective, Part, blocks_of
from vlatool.plugins import DATA_KINDS
from vlatool.training.checkpoints import unsaved_digests
from vlatool.training.config import EmaConfig, HParams, TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample

SAMPLES = 8
# Values with which a model learns in a few steps.
_HPARAMS = {"lr": 3e-3, "lr_scheduler": "const", "warmup": 0, "global_batch_size": SAMPLES}
_WORLD_KIND = "robotics"  # the data kind of samples of the built-in world

Data = str | Path | Mapping[str, Any] | None


def check_config(
    model_type: ModelType,
    section: ConfigModel,
    data: Data,
    folder: Path,
    init_from: str | Path | None = None,
) -> tuple[TrainConfig, DatasetInfo]:
    """The derived configuration of short runs, and the dataset info of their data.

    Args:
        model_type: The model type to check.
        section: Its config.
        data: Like `data` of `check_model_type`.
        folder: Folder in which data may be created.
        init_from: Like `init_from` of `check_model_type`.
    """
    config_type = section.model_dump().get("type")
    assert config_type == model_type.name, (
        f"`Config.type` is {config_type!r}, but `name` is {model_type.name!r}"
    )
    _check_kinds(model_type)
    config = _config_class(model_type)(
        data=_data_section(model_type, data, folder),
        model=section,
        hparams=HParams.model_validate(_HPARAMS),
        ema=EmaConfig(enabled=True),
        init_from=None if init_from is None else str(init_from),
    ).with_init_base_config()
    info = config.data_kind.load_info(config.data, NULL)
    assert sum(dataset.size for dataset in info.datasets), (
        "`load_info` finds no samples in the data"
    )
    for name, value in info.fingerprint.items():
        assert isinstance(value, str), (
            f"the fingerprint {name!r} is a {type(value).__name__}, not a str"
        )
    derived, _ = config.derive(info)
    assert derived.derive(info)[0] == derived, (
        "a second call of `derive` changes values that the first one derived"
    )
    return derived, info


def _config_class(checked_type: ModelType) -> type[TrainConfig]:
    class CheckConfig(TrainConfig):
        @property
        def model_type(self) -> ModelType:
            return checked_type

    return CheckConfig


def _check_kinds(model_type: ModelType) -> None:
    assert model_type.kinds, "`kinds` is empty: a model type needs at least one data kind"
    for target in model_type.kinds:
        kind = data_kind(None, [target])
        is_taken = ":" in target and kind.name in DATA_KINDS.names()
        assert not is_taken, (
            f"the data kind {target}: a built-in data kind already has its name {kind.name!r}"
        )
        config_type = kind.Config().type
        assert config_type == kind.name, (
            f"`Config.type` is {config_type!r}, but the name of the data kind is {kind.name!r}"
        )
        unknown = sorted(set(kind.folders_keys) - set(kind.Config.model_fields))
        assert kind.folders_keys, f"`folders_keys` of the data kind {kind.name!r} is empty"
        assert not unknown, (
            f"`folders_keys` lists {unknown[0]!r}, which is not a key of the data kind "
            f"{kind.name!r}"
        )


def _data_section(model_type: ModelType, data: Data, folder: Path) -> LoadingConfig:
    first: DataKind = data_kind(None, model_type.kinds)
    if data is None:
        assert first.name == _WORLD_KIND, (
            f"pass data=FOLDER, a small data set of the kind {first.name!r}"
        )
        # Robotics data: three short, preprocessed episodes of the built-in world.
        raw = str(folder / "raw")
        sample(SampleConfig(layout="spartan", output=raw, episodes=3, frames=6, workers=1))
        tree = {"format": "spartan", "sources": [raw], "output": str(folder / "data"), "workers": 1}
        tree |= {"past_lowdim_steps": 1, "future_lowdim_steps": 3, "max_padding_right": 3}
        preprocess(config_of(PreprocessConfig, tree))
        data = folder / "data"
    keys: dict[str, Any] = {first.folders_keys[0]: [str(data)]}
    if isinstance(data, Mapping):
        keys = dict(data)
    kind = data_kind(keys.get("type"), model_type.kinds)
    return kind.Config.model_validate({"num_workers": 0, **keys})


def check_build(model_type: ModelType, config: Any) -> None:
    """Checks the parts; `load` must provide all weights that checkpoints do not hold."""
    try:
        with torch.device("meta"):
            model_type.build(config)
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"`build` does not work on the meta device: {error}") from error
    parts = model_type.build(config)
    assert "model" in parts, f"`build` returns the parts {sorted(parts)}, but none is named 'model'"
    for name, part in parts.items():
        is_lost = part.trained and not part.saved
        assert not is_lost, (
            f"part {name!r} is trained but not saved, so a resume would lose its weights"
        )
    for name, methods in model_type.methods.items():
        for method in methods:
            exists = name in parts and hasattr(parts[name].module, method)
            assert exists, f"`methods` lists {name}.{method}, which does not exist"
    modules = {id(module) for part in parts.values() for module in part.module.modules()}
    for block in blocks_of(parts):
        assert id(block) in modules, (
            f"`blocks` lists a {type(block).__name__} that belongs to no part"
        )
    first, second = (_digests(model_type, config, seed) for seed in (1, 2))
    for name, digest in first.items():
        is_loaded = second[name] == digest
        assert is_loaded, f"part {name!r} is not saved, and `load` does not set all its weights"


def _digests(model_type: ModelType, config: Any, seed: int) -> Mapping[str, str]:
    """Digests of the parts that checkpoints do not hold, initialized with a seed and loaded."""
    torch.manual_seed(seed)
    parts = model_type.build(config)
    model_type.load(config, parts, list(parts))
    return unsaved_digests(parts)


def check_specs(objective: Objective, parts: Mapping[str, Part]) -> None:
    """Checks that optimizers list existing trained parts, and each trained part is in one."""
    specs = objective.optimizers()
    for name, spec in specs.items():
        for part in spec.parts:
            assert part in parts, (
                f"optimizer {name!r} lists part {part!r}, which `build` does not return"
            )
            assert parts[part].trained, (
                f"optimizer {name!r} lists part {part!r}, which is not trained"
            )
    for step in first_steps(objective):
        names = objective.optimizers_at(step)
        assert names, f"`optimizers_at({step})` is empty: no optimizer is active"
        extra = sorted(set(names) - set(specs))
        assert not extra, f"`optimizers_at({step})` lists {extra[0]!r}, which is not an optimizer"
    optimized = {part for spec in specs.values() for part in spec.parts}
    for name, part in parts.items():
        is_idle = (
            part.trained and name not in optimized and any(True for _ in trainable_parameters(part))
        )
        assert not is_idle, f"part {name!r} is trained, but no optimizer lists it"


def first_steps(objective: Objective) -> list[int]:
    """Step 0 and the steps at which optimizers start."""
    return sorted({0, *(spec.starts_at for spec in objective.optimizers().values())})


def trainable_parameters(part: Part) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters of a part that require a gradient."""
    parameters = part.module.named_parameters()
    return ((name, value) for name, value in parameters if value.requires_grad)


def check_flops(flops: Any) -> None:
    """Checks the operations of a sample, if the model type counts them."""
    is_number = isinstance(flops, int | float) and math.isfinite(flops) and flops > 0
    assert flops is None or is_number, (
        f"`flops` returns {flops!r}, but must return a positive number of operations, or None"
    )


def check_batch(label: str, batch: Any, size: int) -> None:
    """Checks that a batch is a flat dict with one row per sample."""
    assert isinstance(batch, dict), f"{label} returns a {type(batch).__name__}, not a dict"
    for name, value in batch.items():
        if isinstance(value, Tensor):
            rows = len(value) if value.ndim else 0
        else:
            is_text = isinstance(value, list) and all(isinstance(text, str) for text in value)
            assert is_text, f"{label}: {name!r} is neither a tensor nor a list of str"
            rows = len(value)
        assert rows == size, f"{label}: {name!r} has {rows} rows for {size} samples"


def check_same_columns(example: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
    """Checks that `example` and batcher return equal keys, dtypes and numbers of axes."""
    names = [sorted(batch_) for batch_ in (example, batch)]
    assert names[0] == names[1], (
        f"`example` has the keys {names[0]}, but the batcher returns {names[1]}"
    )
    for name, value in batch.items():
        example_column = _column(example[name])
        batch_column = _column(value)
        assert example_column == batch_column, (
            f"`example` has {name!r} as {example_column}, but the batcher returns {batch_column}"
        )


def _column(value: Any) -> str:
    return f"{value.dtype} with {value.ndim} axes" if isinstance(value, Tensor) else "text"


def check_equal_batches(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Checks that loaded assets give the same batch as new assets."""
    for name in sorted({*first, *second}):
        value = first.get(name)
        other = second.get(name)
        is_equal = (
            torch.equal(value, other)
            if isinstance(value, Tensor) and isinstance(other, Tensor)
            else value is other or value == other
        )
        assert is_equal, (
            f"`load_assets` gives a different batch than `make_assets`: {name!r} differs"
        )


def check_pickles(label: str, value: Any) -> None:
    """Checks that a value can be sent to loader workers."""
    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"{label} cannot be pickled: {error}") from error


def check_loss(label: str, loss: Loss) -> None:
    """Checks shape, dtype and finiteness of a loss."""
    assert loss.total.ndim == 0, (
        f"{label}: `total` has shape {tuple(loss.total.shape)}, but must be a scalar"
    )
    assert loss.count.ndim == 0, (
        f"{label}: `count` has shape {tuple(loss.count.shape)}, but must be a scalar"
    )
    assert loss.total.dtype == torch.float32, f"{label}: `total` is {loss.total.dtype}, not float32"
    assert loss.total.isfinite(), f"{label}: `total` is {float(loss.total)}"
    assert loss.count > 0, f"{label}: `count` is {float(loss.count):g}, but must be positive"
    for name, value in loss.sums.items():
        assert not value.requires_grad, f"{label}: `sums[{name!r}]` requires grad: detach it"


def check_gradients(label: str, name: str, part: Part) -> None:
    """Checks that every trainable parameter has a gradient."""
    for key, value in trainable_parameters(part):
        assert value.grad is not None, (
            f"{label} gives {name}.{key} no gradient: remove this parameter, or set "
            "requires_grad=False"
        )


def check_images(images: Mapping[str, Any]) -> None:
    """Checks that images are uint8 [N, H, W, 3]."""
    for name, value in images.items():
        shape = getattr(value, "shape", ())
        dtype = str(getattr(value, "dtype", type(value)))
        is_image = dtype == "uint8" and len(shape) == 4 and shape[-1] == 3
        assert is_image, (
            f"`images` returns {name!r} as {dtype} {tuple(shape)}, not uint8 [N, H, W, 3]"
        )


def check_unchanged(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], message: str
) -> None:
    """Checks that tensors with the same name have the same values.

    `message` may contain {} for the name.
    """
    for name, value in after.items():
        assert torch.equal(before[name], value), message.format(name)
