"""Weights of the diffusion policy: initial ones, and those of published checkpoints.

Weights have the names of the published module. Weights that a policy does not use are left out at
import, with a note, and created again at export.
Source: formats/published-runs 4, 4.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.checkpoints.checkpoint import WEIGHTS_SUFFIX
from vlatool.checkpoints.experiment.layout import PICKLED_SUFFIX
from vlatool.errors import DataError, UsageError
from vlatool.models.backbones.config import NetworkConfig
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, TransformerConfig
from vlatool.models.diffusion_policy.model import make_norm
from vlatool.models.diffusion_policy.published import export_problem
from vlatool.models.published import WeightsOrigin
from vlatool.models.weights import (
    check_dense,
    init_state_dict,
    matching_state_dict,
    read_pickled_weights,
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
    origin = WeightsOrigin.find(location)
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
    check_dense(state, path)
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
