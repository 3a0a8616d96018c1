"""State of training in a published checkpoint: weights, optimizer, averages.

Source: formats/published-runs 4; reference/training 3.1. The published optimizer numbers its
parameters: those without weight decay first, each group in the order of the network, tables that
nothing trains included.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.errors import DataError
from vlatool.models.base import decays_by_name
from vlatool.models.diffusion_policy.backbone_config import ClipBackboneConfig
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.weights import (
    ImportedWeights,
    import_published,
    is_computed,
    state_of,
    without_wrappers,
)
from vlatool.models.published import PublishedProgress
from vlatool.models.weights import (
    matching_state_dict,
    read_pickled_weights,
    unusable_checkpoint,
)

_PART, _OPTIMIZER = "model", "main"
_BACKBONE, _DENOISER = "vision_language_backbone.", "transformer."
_CLIP = f"{_BACKBONE}_model.model."
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def open_progress(
    config: DiffusionPolicyConfig, network: nn.Module, paths: Sequence[Path]
) -> PublishedProgress:
    """Opens the files of a checkpoint: `checkpoint_N.pt`, `optimizer_N.pt` and maybe `ema_N.pt`."""
    raw, optimizer, *averaged = paths
    content = read_pickled_weights(raw)
    state = state_of(content, raw)
    imported = import_published(state, network)
    saved = read_pickled_weights(optimizer).get("optimizer")
    moments = dict(_moments(config, state, saved, optimizer))
    step = _count(content, "global_step", raw)
    average, updates = _average(network, averaged, step)
    return PublishedProgress(
        step=step,
        weights={_PART: _matching(network, imported, raw)},
        averages={} if average is None else {_PART: average},
        num_averaged=updates,
        moments={_OPTIMIZER: _of_network(network, moments, optimizer)},
        notes=[*imported.notes(raw)],
    )


def _matching(network: nn.Module, imported: ImportedWeights, path: Path) -> dict[str, Tensor]:
    return matching_state_dict(network, imported.weights, path)


def _average(
    network: nn.Module, paths: Sequence[Path], step: int
) -> tuple[dict[str, Tensor] | None, int]:
    """Averaged weights and the number of their updates; the published `vanilla` writes 0."""
    for path in paths:
        content = read_pickled_weights(path)
        imported = import_published(state_of(content, path), network)
        updates = _count(content, "ema_optimization_step", path)
        return _matching(network, imported, path), updates or step
    return None, 0


def _count(content: Mapping[str, Any], key: str, path: Path) -> int:
    value = content.get(key)
    if type(value) is not int or value < 0:
        raise unusable_checkpoint(path, f"{key} is {value!r}")
    return value


def _moments(
    config: DiffusionPolicyConfig, state: Mapping[str, Tensor], saved: Any, path: Path
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields names of parameters with their state in the published optimizer."""
    try:
        rows, groups = saved["state"], saved["param_groups"]
        if all(isinstance(key, str) for key in rows):  # gathered from several processes
            by_name: dict[str, Any] = dict(without_wrappers(rows))
            yield from by_name.items()
            return
        named = _groups(trainable_names(config, state), groups)
        numbers = [number for group in groups for number in group["params"]]
        for number, name in zip(numbers, named, strict=True):
            if number in rows:
                yield name, rows[number]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"its parameters are not those of the checkpoint: {error}"
        raise unusable_checkpoint(path, reason) from None


def trainable_names(config: DiffusionPolicyConfig, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that the published program trains, in the order of its network."""
    frozen = tuple(_frozen_prefixes(config))
    names: dict[int, str] = {}
    for name, value in without_wrappers(state).items():
        if not is_computed(name) and not name.startswith(frozen):
            # Tied weights are one parameter; tensors without memory have no address.
            names.setdefault(value.data_ptr() or id(value), name)
    return [*names.values()]


def _frozen_prefixes(config: DiffusionPolicyConfig) -> Iterator[str]:
    backbone = config.vision_language_backbone
    if backbone.freeze:
        yield _BACKBONE
    if config.transformer.freeze:
        yield _DENOISER
    if isinstance(backbone, ClipBackboneConfig):
        yield from [f"{_CLIP}text_model."] if backbone.freeze_text_encoder else []
        yield from [f"{_CLIP}vision_model."] if backbone.freeze_image_encoder else []


def _groups(names: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """The names in the order of the groups of an optimizer, without weight decay first."""
    plain = [name for name in names if not decays_by_name(name)]
    decayed = [name for name in names if decays_by_name(name)]
    counts = [len(group["params"]) for group in groups]
    if counts != [len(plain), len(decayed)]:
        raise ValueError(f"groups of {counts}, expected {[len(plain), len(decayed)]}")
    return [*plain, *decayed]


def _of_network(
    network: nn.Module, moments: Mapping[str, Mapping[str, Tensor]], path: Path
) -> dict[str, Mapping[str, Tensor]]:
    """The state of each trained parameter of the network."""
    rows_by_name: dict[str, Mapping[str, Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        row = moments.get(name, {})
        if not _is_whole(row, parameter.shape):
            raise DataError.at(
                path,
                f"has no state of {name} that fits the model",
                hint="use the configuration that the checkpoint was trained with, or start a new "
                "run with the weights alone (init_weights_only: true)",
                code="data.checkpoint_mismatch",
            )
        rows_by_name[f"{_PART}.{name}"] = {key: row[key] for key in _MOMENTS}
    return rows_by_name


def _is_whole(row: object, shape: torch.Size) -> bool:
    """True for the state of a parameter with this shape."""
    moments = [row.get(key) for key in _MOMENTS] if isinstance(row, Mapping) else []
    tensors = [value for value in moments if isinstance(value, Tensor)]
    if len(tensors) < len(_MOMENTS):
        return False
    step, *others = tensors
    return step.numel() == 1 and all(value.shape == shape for value in others)
