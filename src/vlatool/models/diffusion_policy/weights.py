"""Weights of the diffusion policy: initial ones, and published checkpoints with their progress.

Weights have the names of the published module. Weights that a policy does not use are left out at
import, with a note, and created again at export. The published optimizer numbers its parameters:
first all without weight decay, then the others, each group in the order of the network, including
tables that nothing trains. Source: formats/published-runs 4, 4.1; reference/training 3.1.
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
from vlatool.models.backbones.config import ClipBackboneConfig, NetworkConfig
from vlatool.models.base import decays_by_name
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, TransformerConfig
from vlatool.models.diffusion_policy.model import make_norm
from vlatool.models.diffusion_policy.published import export_problem
from vlatool.models.published import PublishedProgress
from vlatool.models.trained import existing_weights
from vlatool.models.weights import (
    init_state_dict,
    matching_state_dict,
    read_pickled_weights,
    unusable_checkpoint,
    write_pickled_weights,
)

SECTIONS = ("vision_language_backbone", "transformer")
_STATE = "state_dict"
_EMA_STATE = "ema_state_dict"
_WRAPPERS = ("_orig_mod.", "module.")
# Weights of the published module that get no gradient in a policy.
_DEAD = ("transformer.embeddings.", "transformer.output.", "transformer.norm.")
_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"
_PRETRAINED = "vision_language_backbone._model.model."
# Buffers that follow from the configuration; only some versions store them in files.
_COMPUTED = (".pos_embed.inv_freq", "sinusoidal_position_embeddings.emb", ".position_ids")
_SCHEDULER = "scheduler."
_MAX_LISTED = 3
# State of a parameter in AdamW.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


# initial weights


def load_sections(
    config: DiffusionPolicyConfig, network: nn.Module, names: Sequence[str]
) -> list[str]:
    """Loads the weights of base models, or of the checkpoints that sections name.

    Returns:
        Notes on what was not taken from the checkpoints.
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


def load_section(module: nn.Module, name: str, location: str) -> list[str]:
    """Loads the weights of one network of a policy, from its own file or the file of a policy.

    Returns:
        Notes on what was not taken from the file.
    """
    path, stored = read_state(location)
    prefix = f"{name}."
    stored = without_wrappers(stored)
    state = {key: value for key, value in stored.items() if key.startswith(prefix)}
    if not state:  # a file of this network alone
        state = {f"{prefix}{key}": value for key, value in stored.items()}
    holder = nn.Module()
    holder.add_module(name, module)
    imported = import_published(state, holder)
    holder.load_state_dict(matching_state_dict(holder, imported.weights, path), strict=False)
    return [*imported.notes(path)]


def load_policy(
    network: nn.Module, location: str, *, excluded: Sequence[str] = ()
) -> "ImportedWeights":
    """Loads the weights of a policy from a published file or a run.

    Args:
        network: The policy.
        location: The file or the run.
        excluded: Networks of the policy that keep their weights.
    """
    path, state = read_state(location)
    imported = import_published(state, network)
    weights = init_state_dict(network, imported.weights, path, excluded)
    network.load_state_dict(weights, strict=False)
    return imported


def read_state(location: str) -> tuple[Path, Mapping[str, Tensor]]:
    """The file at a location, published or of a run, and its tensors by name."""
    origin = existing_weights(location)
    if origin.file.suffix == WEIGHTS_SUFFIX:
        return origin.file, origin.read()
    return origin.file, state_of(read_pickled_weights(origin.path), origin.file)


# published checkpoints


@dataclass(frozen=True)
class ImportedWeights:
    """Weights of a published file, with the names of a network."""

    weights: Mapping[str, Tensor]
    dead: Sequence[str]  # names of weights that a policy does not use
    computed: Sequence[str]  # names of buffers that follow from the configuration

    def notes(self, path: Path) -> Iterator[str]:
        """Yields sentences on what is not taken from the file."""
        if self.dead:
            yield _left_out(path, self.dead, "a policy does not use")
        if self.computed:
            yield _left_out(path, self.computed, "vlatool computes again")


def _left_out(path: Path, names: Sequence[str], reason: str) -> str:
    listed = ", ".join(names[:_MAX_LISTED])
    if len(names) > _MAX_LISTED:
        listed += ", ..."
    return f"{path}: {len(names)} tensors are left out, which {reason}: {listed}"


def import_published(state: Mapping[str, Tensor], network: nn.Module) -> ImportedWeights:
    """The weights of a published state dict, with the names of a network.

    Buffers that follow from the configuration are taken from the network.
    """
    named = without_wrappers(state)
    own = network.state_dict()
    weights: dict[str, Tensor] = {}
    dead: list[str] = []
    computed: list[str] = []
    for name, value in named.items():
        is_dead = name.startswith(_DEAD) or name.endswith((_EMBEDDING, _HEAD))
        if _is_computed(name):
            computed.append(name)
        elif is_dead and name not in own:
            dead.append(name)
        else:
            weights[name] = value
    weights |= {name: value for name, value in own.items() if _is_computed(name)}
    if named.keys() == own.keys():  # a checkpoint of this program
        computed = []
    return ImportedWeights(weights, dead, computed)


def _is_computed(name: str) -> bool:
    return name.endswith(_COMPUTED) or name.startswith(_SCHEDULER)


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without the prefixes of compiled and distributed modules.

    As in the published loader, the first name decides which prefixes are removed.
    """
    named = dict(state)
    first = next(iter(named), "")
    while first.startswith(_WRAPPERS):
        prefix = first[: first.index(".") + 1]
        named = {name.removeprefix(prefix): value for name, value in named.items()}
        first = first.removeprefix(prefix)
    return named


def state_of(content: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
    """The state dict in the content of a published file: raw or averaged weights."""
    state: Any = content
    for key in (_STATE, _EMA_STATE):
        if key in content:
            state = content[key]
    is_state = isinstance(state, Mapping) and bool(state)
    if is_state:
        is_state = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not is_state:
        raise DataError.at(
            path,
            "the file holds no weights",
            hint=f"use checkpoint_N{PICKLED_SUFFIX} or ema_N{PICKLED_SUFFIX}, not optimizer_N",
            code="data.missing",
        )
    return state


def export_published(config: DiffusionPolicyConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict for strict loading by the published module; unused weights are zeros."""
    if problem := export_problem(config):
        raise UsageError(
            f"the policy cannot be exported: {problem}",
            hint="only a CLIP, VLM or plain vision transformer backbone with the published "
            "denoiser can be exported",
            code="usage.unsupported",
        )
    denoiser = config.transformer
    assert isinstance(denoiser, TransformerConfig)
    exported = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    for name in state:
        if name.startswith(_PRETRAINED) and name.endswith(_EMBEDDING):
            exported[f"{_PRETRAINED}{_HEAD}"] = exported[name]
    table = torch.zeros(denoiser.vocab_size, denoiser.hidden_dim)
    exported["transformer.embeddings.weight"] = table
    exported["transformer.output.weight"] = table if denoiser.weight_tying else table.clone()
    norm = make_norm(denoiser.norm_type, denoiser.hidden_dim, denoiser.norm_eps)
    for name, value in norm.state_dict().items():
        exported[f"transformer.norm.{name}"] = value
    return exported


def write_published(path: Path, state: Mapping[str, Any], number: int, step: int) -> None:
    """Writes `checkpoint_N.pt`: weights, and the progress of a new run."""
    content = {
        "checkpoint_num": number,
        "datastrings": None,
        "curr_shard_idx_per_dataset": None,
        "shard_shuffle_seed_per_dataset": None,
        "samples_seen": 0,
        "global_step": step,
        _STATE: dict(state),
    }
    write_pickled_weights(path, content)


def write_published_average(path: Path, state: Mapping[str, Any], number: int, step: int) -> None:
    """Writes `ema_N.pt`: averaged weights after `step` updates."""
    content = {"checkpoint_num": number, "ema_optimization_step": step, _EMA_STATE: dict(state)}
    write_pickled_weights(path, content)


# progress of published checkpoints


def open_progress(
    config: DiffusionPolicyConfig, network: nn.Module, paths: Sequence[Path]
) -> PublishedProgress:
    """Opens the files of a checkpoint: `checkpoint_N.pt`, `optimizer_N.pt` and maybe `ema_N.pt`."""
    raw = paths[0]
    optimizer = paths[1]
    averaged = paths[2:]  # one file, or none
    content = read_pickled_weights(raw)
    state = state_of(content, raw)
    imported = import_published(state, network)
    saved = read_pickled_weights(optimizer).get("optimizer")
    moments = _moments(config, state, saved, optimizer)
    step = _count(content, "global_step", raw)
    averages: dict[str, Mapping[str, Tensor]] = {}
    num_averaged = 0
    for path in averaged:
        content = read_pickled_weights(path)
        average = import_published(state_of(content, path), network)
        averages["model"] = matching_state_dict(network, average.weights, path)
        # The published `vanilla` writes 0.
        num_averaged = _count(content, "ema_optimization_step", path) or step
    return PublishedProgress(
        step=step,
        weights={"model": matching_state_dict(network, imported.weights, raw)},
        averages=averages,
        num_averaged=num_averaged,
        moments={"main": _moments_of_network(network, moments, optimizer)},
        notes=[*imported.notes(raw)],
    )


def _count(content: Mapping[str, Any], key: str, path: Path) -> int:
    value = content.get(key)
    if type(value) is not int or value < 0:
        raise unusable_checkpoint(path, f"{key} is {value!r}")
    return value


def _moments(
    config: DiffusionPolicyConfig, state: Mapping[str, Tensor], saved: Any, path: Path
) -> dict[str, Any]:
    """State of each parameter in the published optimizer, by the name of the parameter."""
    try:
        rows = saved["state"]
        groups = saved["param_groups"]
        if all(isinstance(key, str) for key in rows):  # gathered from several processes
            return without_wrappers(rows)
        undecayed: list[str] = []
        decayed: list[str] = []
        for name in trainable_names(config, state):
            group = decayed if decays_by_name(name) else undecayed
            group.append(name)
        counts = [len(group["params"]) for group in groups]
        if counts != [len(undecayed), len(decayed)]:
            raise ValueError(
                f"has groups of {counts} parameters, not {[len(undecayed), len(decayed)]}"
            )
        numbers = [*groups[0]["params"], *groups[1]["params"]]
        moments: dict[str, Any] = {}
        for number, name in zip(numbers, [*undecayed, *decayed], strict=True):
            if number in rows:
                moments[name] = rows[number]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"its parameters do not match the checkpoint: {error}"
        raise unusable_checkpoint(path, reason) from None
    return moments


def trainable_names(config: DiffusionPolicyConfig, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that the published program trains, in the order of its network."""
    backbone = config.vision_language_backbone
    frozen: list[str] = []
    if backbone.freeze:
        frozen.append("vision_language_backbone.")
    if config.transformer.freeze:
        frozen.append("transformer.")
    if isinstance(backbone, ClipBackboneConfig) and backbone.freeze_text_encoder:
        frozen.append(f"{_PRETRAINED}text_model.")
    if isinstance(backbone, ClipBackboneConfig) and backbone.freeze_image_encoder:
        frozen.append(f"{_PRETRAINED}vision_model.")
    names: dict[int, str] = {}
    for name, value in without_wrappers(state).items():
        if not _is_computed(name) and not name.startswith(tuple(frozen)):
            # Tied weights are one parameter; tensors without memory have no address.
            names.setdefault(value.data_ptr() or id(value), name)
    return [*names.values()]


def _moments_of_network(
    network: nn.Module, moments: Mapping[str, Any], path: Path
) -> dict[str, Mapping[str, Tensor]]:
    """Moments of each trained parameter, by `PART.PARAMETER`."""
    named: dict[str, Mapping[str, Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        row = moments.get(name, {})
        if not _fits(row, parameter):
            raise DataError.at(
                path,
                f"has no state of {name} that fits the model",
                hint="use the configuration with which the checkpoint was trained, or start a "
                "new run from the weights alone (init_weights_only: true)",
                code="data.checkpoint_mismatch",
            )
        named[f"model.{name}"] = {key: row[key] for key in _MOMENTS}
    return named


def _fits(row: Any, parameter: nn.Parameter) -> bool:
    if not isinstance(row, Mapping):
        return False
    for key in _MOMENTS:
        value = row.get(key)
        if not isinstance(value, Tensor):
            return False
        if key == "step" and value.numel() != 1:
            return False
        if key != "step" and value.shape != parameter.shape:
            return False
    return True
