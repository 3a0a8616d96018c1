"""Import and export of published checkpoints, with their state of training; initial weights.

Weight names are those of the published module. Weights that a policy does not use are left out at
import, with a note, and created again at export. The published optimizer numbers its parameters:
those without weight decay first, each group in the order of the network, tables that nothing trains
included. Source: formats/published-runs 4, 4.1; reference/training 3.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.errors import DataError, UsageError
from vlatool.formats.experiment.layout import PICKLED_SUFFIX
from vlatool.formats.run.checkpoint import WEIGHTS_SUFFIX
from vlatool.models.base import decays_by_name
from vlatool.models.diffusion_policy.config import (
    ClipBackboneConfig,
    DiffusionPolicyConfig,
    NetworkConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import make_norm
from vlatool.models.diffusion_policy.published import export_problem
from vlatool.models.published import PublishedProgress
from vlatool.models.trained import existing_weights
from vlatool.models.weights import (
    check_shapes,
    init_state_dict,
    matching_state_dict,
    read_pickled_weights,
    unusable_checkpoint,
    write_pickled_weights,
)

_STATE = "state_dict"
_EMA_STATE = "ema_state_dict"
_WRAPPERS = ("_orig_mod.", "module.")
SECTIONS = ("vision_language_backbone", "transformer")
# Weights of the published module that get no gradient in a policy.
_DEAD = ("transformer.embeddings.", "transformer.output.", "transformer.norm.")
_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"
_VLM = "vision_language_backbone._model.model."
# Buffers that follow from the configuration; only some versions store them in files.
_COMPUTED = (".pos_embed.inv_freq", "sinusoidal_position_embeddings.emb", ".position_ids")
_SCHEDULER = "scheduler."
_MAX_LISTED = 3


@dataclass(frozen=True)
class ImportedWeights:
    """Weights of a published file, with the names of a network."""

    weights: Mapping[str, Tensor]
    dead: Sequence[str]  # names of weights that a policy does not use
    computed: Sequence[str]  # names of buffers that follow from the configuration

    def notes(self, path: Path) -> Iterator[str]:
        """Yields sentences on what is not taken from the file."""
        for names, reason in (
            (self.dead, "a policy does not use"),
            (self.computed, "this program computes again"),
        ):
            if names:
                count = len(names)
                listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if count > _MAX_LISTED else "")
                yield f"{path}: left out {count} tensors that {reason}: {listed}"


def import_published(state: Mapping[str, Tensor], network: nn.Module) -> ImportedWeights:
    """The weights of a published state dict, with the names of a network. Buffers that follow from
    the configuration are taken from the network.
    """
    named = without_wrappers(state)
    own = network.state_dict()
    dead = [name for name in named if _is_dead(name) and name not in own]
    computed = [name for name in named if is_computed(name)]
    left_out = {*dead, *computed}
    weights = {name: value for name, value in named.items() if name not in left_out}
    weights |= {name: value for name, value in own.items() if is_computed(name)}
    is_own = named.keys() == own.keys()  # a checkpoint of this program
    return ImportedWeights(weights, dead, () if is_own else computed)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes of compiled and distributed modules. As in the published
    loader, the first name decides which prefixes are removed.
    """
    named = dict(state)
    while prefix := next(
        (wrapper for wrapper in _WRAPPERS if next(iter(named), "").startswith(wrapper)), None
    ):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _is_dead(name: str) -> bool:
    return name.startswith(_DEAD) or name.endswith((_EMBEDDING, _HEAD))


def is_computed(name: str) -> bool:
    return name.endswith(_COMPUTED) or name.startswith(_SCHEDULER)


def export_published(config: DiffusionPolicyConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict for strict loading by the published module; unused weights are zeros."""
    if problem := export_problem(config):
        raise UsageError(
            f"the policy cannot be exported: {problem}",
            hint="export only policies with a CLIP, VLM or plain vision transformer backbone and "
            "the native denoiser",
            code="usage.unsupported",
        )
    denoiser = config.transformer
    assert isinstance(denoiser, TransformerConfig)
    exported = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    words = [name for name in exported if name.startswith(_VLM) and name.endswith(_EMBEDDING)]
    heads = {f"{_VLM}{_HEAD}": exported[name] for name in words}
    return {**exported, **heads, **_unused(denoiser)}


def _unused(section: TransformerConfig) -> dict[str, Tensor]:
    table = torch.zeros(section.vocab_size, section.hidden_dim)
    head = table if section.weight_tying else table.clone()
    norm = make_norm(section.norm_type, section.hidden_dim, section.norm_eps).state_dict()
    named = {f"transformer.norm.{name}": value for name, value in norm.items()}
    words = {"transformer.embeddings.weight": table, "transformer.output.weight": head}
    return {**words, **named}


def write_published(path: Path, state: Mapping[str, Any], number: int, step: int) -> None:
    """Writes `checkpoint_N.pt`: weights, and the progress of a new run."""
    progress = {
        "checkpoint_num": number,
        "datastrings": None,
        "curr_shard_idx_per_dataset": None,
        "shard_shuffle_seed_per_dataset": None,
        "samples_seen": 0,
        "global_step": step,
    }
    write_pickled_weights(path, {**progress, _STATE: dict(state)})


def write_published_average(path: Path, state: Mapping[str, Any], number: int, step: int) -> None:
    """Writes `ema_N.pt`: averaged weights after `step` updates."""
    content = {"checkpoint_num": number, "ema_optimization_step": step, _EMA_STATE: dict(state)}
    write_pickled_weights(path, content)


# initial weights


def load_sections(
    config: DiffusionPolicyConfig, network: nn.Module, names: Sequence[str]
) -> list[str]:
    """Loads the weights of base models, or those of the checkpoints that sections name; returns
    notes on what was not taken from the checkpoints.
    """
    notes: list[str] = []
    for name in SECTIONS:
        section: NetworkConfig = getattr(config, name)
        module: Any = getattr(network, name)
        if name not in names:
            continue
        if section.resume_from_checkpoint is not None:
            notes += load_section(module, name, section.resume_from_checkpoint)
        elif hasattr(module, "load_base"):
            module.load_base()
    return notes


def load_policy(
    network: nn.Module, location: str, *, excluded: Sequence[str] = ()
) -> ImportedWeights:
    """Loads the weights of a policy from a published file or a run; returns the weights that were
    loaded, and the names that were left out.
    """
    path, state = read_state(location)
    return load_state(network, state, path, excluded=excluded)


def load_state(
    network: nn.Module, state: Mapping[str, Tensor], path: Path, *, excluded: Sequence[str] = ()
) -> ImportedWeights:
    """As `load_policy`, from the state dict of the file at `path`."""
    imported = import_published(state, network)
    weights = init_state_dict(network, imported.weights, path, excluded)
    network.load_state_dict(weights, strict=False)
    return imported


def check_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises as `load_state` if names or shapes differ; reads no values."""
    check_shapes(network, import_published(state, network).weights, path)


def load_section(module: nn.Module, name: str, location: str) -> list[str]:
    """Loads the weights of one network of a policy, from its own file or that of a policy; returns
    notes on what was not taken from the file.
    """
    path, stored = read_state(location)
    state = without_wrappers(stored)
    below = {key for key in state if key.startswith(f"{name}.")}
    state = {key: state[key] for key in below} or {f"{name}.{key}": state[key] for key in state}
    holder = nn.Module()
    holder.add_module(name, module)
    imported = import_published(state, holder)
    holder.load_state_dict(matching_state_dict(holder, imported.weights, path), strict=False)
    return [*imported.notes(path)]


def read_state(location: str) -> tuple[Path, Mapping[str, Tensor]]:
    """The state dict of a file: published raw or averaged weights, or those of a run; returns the
    file, and its tensors by name.
    """
    origin = existing_weights(location)
    if origin.file.suffix == WEIGHTS_SUFFIX:
        return origin.file, origin.read()
    return origin.file, state_of(read_pickled_weights(origin.path), origin.file)


def state_of(content: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
    """The state dict in the content of a published file: raw or averaged weights."""
    state = next((content[key] for key in (_EMA_STATE, _STATE) if key in content), content)
    if not isinstance(state, Mapping) or not (
        bool(state)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise DataError.at(
            path,
            "the file holds no weights",
            hint=f"use checkpoint_N{PICKLED_SUFFIX} or ema_N{PICKLED_SUFFIX}; not an optimizer's",
            code="data.missing",
        )
    return state


_PART = "model"
_OPTIMIZER = "main"
_BACKBONE = "vision_language_backbone."
_DENOISER = "transformer."
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
    try:
        rows = saved["state"]
        groups = saved["param_groups"]
        if all(isinstance(key, str) for key in rows):  # gathered from several processes
            by_name: dict[str, Any] = dict(without_wrappers(rows))
            yield from by_name.items()
            return
        # The names in the order of the groups of an optimizer, without weight decay first
        names = trainable_names(config, state)
        plain = [name for name in names if not decays_by_name(name)]
        decayed = [name for name in names if decays_by_name(name)]
        counts = [len(group["params"]) for group in groups]
        if counts != [len(plain), len(decayed)]:
            raise ValueError(f"groups of {counts}, expected {[len(plain), len(decayed)]}")
        named = [*plain, *decayed]
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


def _of_network(
    network: nn.Module, moments: Mapping[str, Mapping[str, Tensor]], path: Path
) -> dict[str, Mapping[str, Tensor]]:
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
    moments = [row.get(key) for key in _MOMENTS] if isinstance(row, Mapping) else []
    tensors = [value for value in moments if isinstance(value, Tensor)]
    if len(tensors) < len(_MOMENTS):
        return False
    step, *others = tensors
    return step.numel() == 1 and all(value.shape == shape for value in others)
