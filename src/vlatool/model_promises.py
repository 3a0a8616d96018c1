"""What a model type promises and can be seen without a run: config, parts, batches, losses."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.config.base import ConfigModel
from vlatool.events import NULL
from vlatool.loading.base import DataKind, DatasetInfo
from vlatool.loading.config import LoadingConfig
from vlatool.loading.kinds import data_kind
from vlatool.models.base import Loss, ModelType, Objective, Part
from vlatool.plugins import DATA_KINDS
from vlatool.training.checkpoints import unsaved_digests
from vlatool.training.config import EmaConfig, HParams, TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample

SAMPLES = 8
# Learns in a few steps, and keeps averages.
_HPARAMS = {"lr": 3e-3, "lr_scheduler": "const", "warmup": 0, "global_batch_size": SAMPLES}
_OF_WORLD = "robotics"  # the kind whose data the built-in world makes

Data = str | Path | Mapping[str, Any] | None


def trial_config(
    model_type: ModelType, section: ConfigModel, data: Data, folder: Path
) -> tuple[TrainConfig, DatasetInfo]:
    """The derived configuration of short runs and the facts of their data.

    Args:
        model_type: What is tried.
        section: Its config.
        data: As `testing.check_model_type` has it.
        folder: Where data may be made.
    """
    written = section.model_dump().get("type")
    assert written == model_type.name, f"Config.type is {written!r}, name is {model_type.name!r}"
    _check_kinds(model_type)
    config = _config_class(model_type)(
        data=_data_section(model_type, data, folder),
        model=section,
        hparams=HParams.model_validate(_HPARAMS),
        ema=EmaConfig(enabled=True),
    )
    info = config.data_kind.load_info(config.data, NULL)
    assert sum(one.size for one in info.datasets), "read_facts finds no sample in the data"
    for name, value in info.fingerprint.items():
        assert isinstance(value, str), f"the fingerprint {name!r} is a {type(value).__name__}"
    derived, _ = config.derive(info)
    assert derived.derive(info)[0] == derived, "derive changes what it derived"
    return derived, info


def _config_class(given: ModelType) -> type[TrainConfig]:
    class CheckConfig(TrainConfig):
        @property
        def model_type(self) -> ModelType:
            return given

    return CheckConfig


def _check_kinds(model_type: ModelType) -> None:
    assert model_type.kinds, "kinds is empty: a model type takes at least one kind of data"
    for target in model_type.kinds:
        kind = data_kind(None, [target])
        taken = ":" in target and kind.name in DATA_KINDS.names()
        assert not taken, f"the kind {target} has the name {kind.name!r} of a built-in one"
        written = kind.Config().type
        assert written == kind.name, f"data type is {written!r}, the name of its kind {kind.name!r}"
        unknown = sorted(set(kind.folders_keys) - set(kind.Config.model_fields))
        assert kind.folders_keys, f"folders_keys of the kind {kind.name!r} is empty"
        assert not unknown, f"folders_keys names {unknown[0]!r}, no key of the kind {kind.name!r}"


def _data_section(model_type: ModelType, data: Data, folder: Path) -> LoadingConfig:
    first: DataKind = data_kind(None, model_type.kinds)
    if data is None:
        assert first.name == _OF_WORLD, f"give data=FOLDER, a small one of the kind {first.name!r}"
        data = world_data(folder)
    keys: dict[str, Any] = {first.folders_keys[0]: [str(data)]}
    if isinstance(data, Mapping):
        keys = dict(data)
    kind = data_kind(keys.get("type"), model_type.kinds)
    return kind.Config.model_validate({"num_workers": 0, **keys})


def world_data(folder: Path) -> Path:
    """Robotics data: three short episodes of the built-in world, preprocessed."""
    raw = str(folder / "raw")
    sample(SampleConfig(layout="spartan", output=raw, episodes=3, frames=6, workers=1))
    tree = {"format": "spartan", "sources": [raw], "output": str(folder / "data"), "workers": 1}
    tree |= {"past_lowdim_steps": 1, "future_lowdim_steps": 3, "max_padding_right": 3}
    preprocess(PreprocessConfig.specialize(tree).model_validate(tree))
    return folder / "data"


def check_build(model_type: ModelType, config: Any) -> None:
    """Parts are sound, and what checkpoints do not hold comes from elsewhere."""
    try:
        with torch.device("meta"):
            model_type.build(config)
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"build does not work on the meta device: {error}") from error
    parts = model_type.build(config)
    assert "model" in parts, f"build gives the parts {sorted(parts)}, none of them 'model'"
    for name, part in parts.items():
        lost = part.trained and not part.saved
        assert not lost, f"part {name!r} is trained but not saved: a resume would lose it"
    for name, methods in model_type.methods.items():
        for method in methods:
            there = name in parts and hasattr(parts[name].module, method)
            assert there, f"methods has {name}.{method}, which is not there"
    for block in model_type.blocks(parts):
        inside = any(block is one for part in parts.values() for one in part.module.modules())
        assert inside, f"blocks gives a {type(block).__name__} that is in no part"
    first, second = (_digests(model_type, config, seed) for seed in (1, 2))
    for name, digest in first.items():
        loaded = second[name] == digest
        assert loaded, f"part {name!r} is not saved, and load does not give it all its weights"


def _digests(model_type: ModelType, config: Any, seed: int) -> Mapping[str, str]:
    """Of parts that checkpoints do not hold, when weights begin with a seed."""
    torch.manual_seed(seed)
    parts = model_type.build(config)
    model_type.load(config, parts, list(parts))
    return unsaved_digests(parts)


def check_specs(objective: Objective, parts: Mapping[str, Part]) -> None:
    """Optimizers move parts that are there, and every part that is trained is moved."""
    specs = objective.optimizers()
    for name, spec in specs.items():
        for part in spec.parts:
            assert part in parts, f"optimizer {name!r} moves {part!r}, which build does not give"
            assert parts[part].trained, f"optimizer {name!r} moves {part!r}, which is not trained"
    for step in first_steps(objective):
        names = objective.optimizers_at(step)
        assert names, f"no optimizer moves at step {step}"
        extra = sorted(set(names) - set(specs))
        assert not extra, f"optimizers_at({step}) names {extra[0]!r}, which is no optimizer"
    moved = {part for spec in specs.values() for part in spec.parts}
    for name, part in parts.items():
        idle = part.trained and name not in moved and any(True for _ in learning(part))
        assert not idle, f"part {name!r} is trained, and no optimizer moves it"


def first_steps(objective: Objective) -> list[int]:
    """The first step, and those at which optimizers begin."""
    return sorted({0, *(spec.starts_at for spec in objective.optimizers().values())})


def learning(part: Part) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a part that get a gradient, by name."""
    found = part.module.named_parameters()
    return ((name, value) for name, value in found if value.requires_grad)


def check_batch(maker: str, batch: Any, size: int) -> None:
    """A batch is flat, with a row per sample."""
    assert isinstance(batch, dict), f"{maker} gives a {type(batch).__name__}, no dict"
    for name, value in batch.items():
        if isinstance(value, Tensor):
            rows = len(value) if value.ndim else 0
        else:
            texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
            assert texts, f"{maker}: {name!r} is neither a tensor nor a list of text"
            rows = len(value)
        assert rows == size, f"{maker}: {name!r} has {rows} rows for {size} samples"


def check_same_columns(example: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
    """The example stands for what the batcher makes."""
    names = [sorted(one) for one in (example, batch)]
    assert names[0] == names[1], f"example has {names[0]}, the batcher makes {names[1]}"
    for name, value in batch.items():
        made, wanted = _column(example[name]), _column(value)
        assert made == wanted, f"example has {name!r} as {made}, the batcher makes {wanted}"


def _column(value: Any) -> str:
    return f"{value.dtype} with {value.ndim} axes" if isinstance(value, Tensor) else "text"


def check_equal_batches(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """What is kept beside a run serves as well as what was prepared for it."""
    for name, value in first.items():
        other = second[name]
        same = torch.equal(value, other) if isinstance(value, Tensor) else value == other
        assert same, f"kept gives another batch than prepared: {name!r} differs"


def check_pickles(what: str, value: Any) -> None:
    """A value travels to loader processes."""
    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"{what} cannot be pickled: {error}") from error


def check_loss(what: str, loss: Loss) -> None:
    """Sums of finite numbers."""
    assert loss.total.ndim == 0, f"{what}: total has shape {tuple(loss.total.shape)}, is no scalar"
    assert loss.count.ndim == 0, f"{what}: count has shape {tuple(loss.count.shape)}, is no scalar"
    assert loss.total.dtype == torch.float32, f"{what}: total is {loss.total.dtype}, not float32"
    assert loss.total.isfinite(), f"{what}: total is {float(loss.total)}"
    assert loss.count > 0, f"{what}: no element is counted"
    for name, value in loss.sums.items():
        assert not value.requires_grad, f"{what}: the sum {name!r} is not detached"


def check_reached(what: str, name: str, part: Part) -> None:
    """Every parameter has a gradient."""
    for key, value in learning(part):
        assert value.grad is not None, (
            f"{what} does not reach {name}.{key}: do not build it, or freeze it"
        )


def check_images(images: Mapping[str, Any]) -> None:
    """Pictures are uint8 [N, H, W, 3]."""
    for name, value in images.items():
        shape, kind = getattr(value, "shape", ()), str(getattr(value, "dtype", type(value)))
        fits = kind == "uint8" and len(shape) == 4 and shape[-1] == 3
        assert fits, f"images gives {name!r} as {kind} {tuple(shape)}, not uint8 [N, H, W, 3]"


def check_unchanged(before: Mapping[str, Tensor], after: Mapping[str, Tensor], why: str) -> None:
    """Tensors of the same names are equal; `why` is a sentence with a place for the name."""
    for name, value in after.items():
        assert torch.equal(before[name], value), why.format(name)
