"""Checkpoints of LeRobot's ACT: a folder with `config.json` and `model.safetensors`. No torch.

The statistics that scale actions and observations are in files that the two processors name
(LeRobot 0.4), or beside the weights (LeRobot 0.3 and before). Everything that this network cannot
do the same way is refused by its name: a robot must not move by half of a checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.plugin import (
    Array,
    DataError,
    Layout,
    PublishedFiles,
    PublishedModel,
    RoboticsDataConfig,
    WeightsOrigin,
    assets_of,
    local_copy,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlatool_act.spec import ActConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
STATE = "observation.state"
ACTION = "action"
_IMAGES = "observation.images."
_PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_NORMALIZERS = ("normalizer_processor", "unnormalizer_processor")
# Steps of the processors that change no value.
_HARMLESS = ("rename_observations_processor", "to_batch_processor", "device_processor")
# Keys of config.json with the values that this network has.
_FIXED: Mapping[str, Any] = {
    "vision_backbone": "resnet18",
    "replace_final_stride_with_dilation": False,
    "n_obs_steps": 1,
}
_METHODS = {"MEAN_STD": "std", "MIN_MAX": "min_max", "IDENTITY": None}
_ARCHITECTURE = (
    *("dim_model", "n_heads", "dim_feedforward", "feedforward_activation", "pre_norm"),
    *("n_encoder_layers", "n_decoder_layers", "n_vae_encoder_layers", "use_vae"),
    *("latent_dim", "kl_weight", "dropout", "chunk_size"),
)

# Statistics by feature and name, such as ["action"]["mean"].
Statistics = dict[str, dict[str, Array]]


@dataclass(frozen=True)
class LeRobotPolicy:
    """What config.json says about a policy."""

    tree: Mapping[str, Any]  # the file
    cameras: Sequence[str]  # names of the cameras, in the order of the network
    image_size: tuple[int, int]  # height, width
    state_dim: int  # 0: the policy sees no state
    action_dim: int
    methods: Mapping[str, str | None]  # by VISUAL, STATE and ACTION; None: not normalized


class LeRobotLayout(Layout):
    """Lets every command of vlatool take a folder of LeRobot in place of a run."""

    def recognize(self, location: Path) -> PublishedFiles | None:
        """The files of an ACT policy; None for other folders."""
        config = location / CONFIG
        if not location.is_dir() or not config.is_file():
            return None
        try:
            tree = json.loads(config.read_text("utf-8"))
        except ValueError:
            return None
        is_policy = isinstance(tree, dict) and "input_features" in tree
        if not is_policy or tree.get("type") != "act":
            return None
        return PublishedFiles(location / WEIGHTS, config)

    def section(self, files: PublishedFiles) -> "ActConfig":
        return section_of(read_policy(files.weights.parent))

    def open(self, files: PublishedFiles, path: Path) -> PublishedModel:
        """The network with its weights, and the statistics of the data that it was trained on."""
        import torch

        from vlatool.models.weights import check_shapes
        from vlatool_act.model import Act

        folder = files.weights.parent
        policy = read_policy(folder)
        config = section_of(policy)
        state, statistics = read_weights_of(folder, policy, path)
        with torch.device("meta"):
            planned = Act(config)
        check_shapes(planned, state, files.weights)  # before they take memory
        network = Act(config)
        network.load_state_dict(state)
        data = data_section(policy, config)
        options = {"image_size": list(policy.image_size), "pose_groups": []}
        assets = assets_of(data, statistics, 0, options)
        return PublishedModel(config, {"model": network}, assets, data, notes=notes_on(policy))


def read_policy(folder: Path) -> LeRobotPolicy:
    """Reads config.json.

    Raises:
        DataError: The policy needs something that this network does not have.
    """
    path = folder / CONFIG
    tree = json.loads(path.read_text("utf-8"))
    for key, expected in _FIXED.items():
        if tree.get(key, expected) != expected:
            raise _refused(path, f"{key} is {tree[key]!r}, and vlatool-act has {expected!r} only")
    if tree.get("feedforward_activation", "relu") not in ("relu", "gelu"):
        raise _refused(path, f"feedforward_activation is {tree['feedforward_activation']!r}")
    cameras: list[str] = []
    sizes: list[tuple[int, int]] = []
    state_dim = 0
    for name, feature in tree["input_features"].items():
        if name.startswith(_IMAGES):
            _, height, width = feature["shape"]
            cameras.append(name.removeprefix(_IMAGES))
            sizes.append((height, width))
        elif name == STATE:
            (state_dim,) = feature["shape"]
        else:
            raise _refused(path, f"the policy sees {name!r}, which is no camera and no {STATE}")
    if [*tree["output_features"]] != [ACTION]:
        raise _refused(path, f"the policy predicts {[*tree['output_features']]}, not {ACTION}")
    if len(set(sizes)) != 1:
        raise _refused(path, f"its cameras have images of the sizes {sizes}, not of one size")
    methods: dict[str, str | None] = {}
    for kind in ("VISUAL", "STATE", "ACTION"):
        mode = tree.get("normalization_mapping", {}).get(kind, "MEAN_STD")
        if mode not in _METHODS:
            raise _refused(path, f"normalization_mapping has {mode} for {kind}")
        methods[kind] = _METHODS[mode]
    (action_dim,) = tree["output_features"][ACTION]["shape"]
    return LeRobotPolicy(tree, cameras, sizes[0], state_dim, action_dim, methods)


def _refused(path: Path, reason: str) -> DataError:
    return DataError.at(
        path,
        reason,
        hint="run this policy with LeRobot, or train it again with `vlatool train --preset act`",
        code="data.unsupported",
    )


def section_of(policy: LeRobotPolicy) -> "ActConfig":
    """The section `model` of a policy."""
    from vlatool_act.spec import ActConfig

    keys: dict[str, Any] = {}
    for name in _ARCHITECTURE:
        if name in policy.tree:
            keys[name] = policy.tree[name]
    keys.setdefault("chunk_size", 100)
    keys["action_dim"] = policy.action_dim
    keys["state_dim"] = policy.state_dim
    keys["num_images"] = len(policy.cameras)
    return ActConfig(**keys)


def data_section(policy: LeRobotPolicy, config: "ActConfig") -> RoboticsDataConfig:
    """The section `data` that a run with this policy would have."""
    assert config.chunk_size is not None
    observed = [STATE] if policy.state_dim else []
    scaling: dict[str, Any] = {}
    for name, kind in ((STATE, "STATE"), (ACTION, "ACTION")):
        method = policy.methods[kind]
        scaling[name] = {"enabled": method is not None, "method": method}
    steps = {"lowdim_past_timesteps": 0, "lowdim_future_timesteps": config.chunk_size - 1}
    section = {
        "camera_names": [*policy.cameras],
        "image_indices": [0],
        "proprioception_fields": observed,
        "action_fields": [ACTION],
        **steps,
        "proprioception_dim": policy.state_dim,
        "action_dim": policy.action_dim,
        "normalization": {
            "centered_norm": True,  # to [-1, 1]
            "field_configs": scaling,
            "include_fields": [*observed, ACTION],
            **steps,
        },
    }
    return RoboticsDataConfig.model_validate(section)


def notes_on(policy: LeRobotPolicy) -> list[str]:
    """What a user must know, because the checkpoint does not say it or vlatool asks for it."""
    notes = ["the checkpoint does not say its frames per second: 10 is assumed for delays"]
    decay = policy.tree.get("temporal_ensemble_coeff")
    steps = policy.tree.get("n_action_steps")
    if decay is not None:
        notes.append(f"LeRobot averages its chunks: ensemble_decay {decay}, execute_steps 1")
    elif steps is not None:
        notes.append(f"LeRobot executes {steps} steps of a chunk: execute_steps {steps}")
    return notes


def read_weights_of(
    folder: Path, policy: LeRobotPolicy, path: Path
) -> tuple[dict[str, "Tensor"], Statistics]:
    """Weights by the names of `Act`, and statistics; `path` is a local copy of the weights."""
    import torch

    from vlatool.models.weights import read_weights

    if not path.is_file():
        raise DataError.at(
            folder,
            f"has no {WEIGHTS}",
            hint="vlatool reads no weights from .bin, .pt or pickle files, which can run code: "
            "save the policy again with a newer LeRobot, whose save_pretrained writes safetensors",
            code="data.missing",
        )
    stored = read_weights(path)
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.startswith("model."):
            state[name.removeprefix("model.")] = value.float()
    found = _statistics_beside_weights(stored, policy)
    if not found:
        found = _statistics_of_processors(folder, policy)
    means: list[Array] = []
    deviations: list[Array] = []
    for camera in policy.cameras:
        entry = _entry(folder, found, _IMAGES + camera, policy.methods["VISUAL"])
        mean, deviation = _image_scale(entry, policy.methods["VISUAL"])
        means.append(mean)
        deviations.append(deviation)
    state["image_mean"] = torch.from_numpy(np.stack(means))
    state["image_std"] = torch.from_numpy(np.stack(deviations))
    statistics: Statistics = {}
    for name, kind, width in (
        (STATE, "STATE", policy.state_dim),
        (ACTION, "ACTION", policy.action_dim),
    ):
        if width:
            entry = _entry(folder, found, name, policy.methods[kind])
            statistics[name] = _field_entry(entry, width)
    if policy.state_dim and policy.methods["STATE"] == "min_max":
        # LeRobot scales a value that never changed to -1, vlatool to 0.
        entry = statistics[STATE]
        entry["max"] = np.where(entry["max"] == entry["min"], entry["min"] + 2, entry["max"])
    return state, statistics


def load_checkpoint(
    network: "nn.Module", init: WeightsOrigin, init_except: Sequence[str]
) -> list[str]:
    """Starts the training of a network from a checkpoint; its statistics are not taken."""
    from vlatool.models.weights import init_state_dict

    folder = init.file.parent
    state, _ = read_weights_of(folder, read_policy(folder), init.path)
    weights = init_state_dict(network, state, init.file, init_except)
    network.load_state_dict(weights, strict=False)
    return []


def _statistics_beside_weights(stored: Mapping[str, "Tensor"], policy: LeRobotPolicy) -> Statistics:
    """Statistics of LeRobot 0.3 and before, such as unnormalize_outputs.buffer_action.mean."""
    found: Statistics = {}
    for group, key in (("normalize_inputs", "input_features"), ("unnormalize_outputs", None)):
        features = [ACTION] if key is None else [*policy.tree[key]]
        for feature in features:
            start = f"{group}.buffer_{feature.replace('.', '_')}."
            for name, value in stored.items():
                if name.startswith(start):
                    entry = found.setdefault(feature, {})
                    entry[name.removeprefix(start)] = value.double().numpy()
    return found


def _statistics_of_processors(folder: Path, policy: LeRobotPolicy) -> Statistics:
    """Statistics of LeRobot 0.4: observations of the preprocessor, actions of the postprocessor."""
    from vlatool.models.weights import read_weights

    found: Statistics = {}
    for processor in _PROCESSORS:
        path = folder / processor
        if not path.is_file():
            continue
        for step in json.loads(path.read_text("utf-8"))["steps"]:
            kind = step.get("registry_name")
            if kind in _HARMLESS and not step.get("config", {}).get("rename_map"):
                continue
            if kind not in _NORMALIZERS:
                raise _refused(path, f"the step {kind!r} changes values")
            for feature_kind, mode in step.get("config", {}).get("norm_map", {}).items():
                if _METHODS.get(mode, mode) != policy.methods.get(feature_kind):
                    raise _refused(path, f"{feature_kind} is {mode}, other than in {CONFIG}")
            name = Path(step.get("state_file", "none")).name  # never a file of another folder
            if not (folder / name).is_file():
                continue
            for key, value in read_weights(local_copy(folder, [name]) / name).items():
                feature, _, statistic = key.rpartition(".")
                if processor == _PROCESSORS[0] or feature == ACTION:
                    found.setdefault(feature, {})[statistic] = value.double().numpy()
    return found


def _entry(folder: Path, found: Statistics, feature: str, method: str | None) -> dict[str, Array]:
    """Statistics of a feature.

    Raises:
        DataError: Those that its normalization needs are missing.
    """
    entry = found.get(feature, {})
    needed = {"std": ("mean", "std"), "min_max": ("min", "max"), None: ()}[method]
    for name in needed:
        if name not in entry or not np.isfinite(entry[name]).all():
            raise DataError.at(
                folder,
                f"the statistic {name!r} of {feature!r} is missing, so the policy has no units",
                hint=f"copy the whole folder, with {' and '.join(_PROCESSORS)} and the safetensors "
                "files that they name",
                code="data.missing",
            )
    return entry


def _image_scale(entry: Mapping[str, Array], method: str | None) -> tuple[Array, Array]:
    """Mean and deviation of red, green and blue, float32 [3] each."""
    mean = np.zeros(3)
    deviation = np.ones(3)
    if method == "std":
        mean = entry["mean"]
        deviation = entry["std"]
    if method == "min_max":  # to [-1, 1]
        mean = (entry["min"] + entry["max"]) / 2
        deviation = (entry["max"] - entry["min"]) / 2
    return mean.reshape(3).astype(np.float32), deviation.reshape(3).astype(np.float32)


def _field_entry(entry: Mapping[str, Array], width: int) -> dict[str, Array]:
    """Statistics of a field, as vlatool has them: a mean always, the others if they are known."""
    values: dict[str, Array] = {"mean": np.zeros(width)}
    if "min" in entry and "max" in entry:
        values["mean"] = (entry["min"] + entry["max"]) / 2
    for name in ("mean", "std", "min", "max"):
        if name in entry:
            values[name] = entry[name].reshape(width)
    return values
