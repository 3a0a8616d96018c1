"""The model type `lerobot`: any policy of the package, in the order of a run. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel, Violation, derivation_rules
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.base import ModelType, Part
from vlatool.models.lerobot import package
from vlatool.models.lerobot.config import (
    ACTION,
    STATE,
    LeRobotPolicyConfig,
    feature_of_camera,
    kind_of,
)
from vlatool.models.lerobot.layout import LeRobotLayout
from vlatool.models.published import Layout, WeightsOrigin
from vlatool.models.trained import section_of

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.robotics.kind import RoboticsAssets
    from vlatool.loading.robotics.mixture import RoboticsInfo
    from vlatool.models.lerobot.batch import LeRobotBatcher
    from vlatool.models.lerobot.objective import LeRobotObjective
    from vlatool.models.policy import RoboticsPolicy


class LeRobotType(ModelType):
    """The model type `lerobot`."""

    name: ClassVar[str] = "lerobot"
    Config: ClassVar[type[ConfigModel]] = LeRobotPolicyConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)
    layout: ClassVar[Layout] = LeRobotLayout()

    def run_defaults(self, section: Mapping[str, Any], init_from: str | None) -> Mapping[str, Any]:
        """Optimizer, schedule and precision as `lerobot-train` has them; no other normalization."""
        data = {"normalization": {"enabled": False}, "augmentation": {"enabled": False}}
        if not package.is_available():
            return {"data": data}
        config = LeRobotPolicyConfig.model_validate(section)
        before = None if init_from is None else section_of(str(init_from))
        if before is not None:
            config = self.restore_base_config(config, before[0])
        preset = package.policy_config(config).get_optimizer_preset()
        hparams = {
            "optimizer": "adam" if preset.type == "adam" else "adamw",
            "lr": preset.lr,
            "wd": preset.weight_decay,
            "eps": preset.eps,
            "beta1": preset.betas[0],
            "beta2": preset.betas[1],
            "grad_clip_norm": preset.grad_clip_norm,
            "lr_scheduler": "model",
            "warmup": 0,
            "precision": "float32",
            "global_batch_size": 8,
            "per_gpu_batch_size": None,
        }
        return {"data": data, "hparams": hparams}

    def restore_base_config(self, config: LeRobotPolicyConfig, before: Any) -> LeRobotPolicyConfig:
        """The policy of the initial weights, with the keys that the config changes."""
        if not isinstance(before, LeRobotPolicyConfig):
            return config
        keys = {**before.config, **config.config}
        return config.model_copy(update={"policy": before.policy, "config": keys})

    def violations(
        self, config: LeRobotPolicyConfig, data: RoboticsDataConfig
    ) -> Iterator[Violation]:
        """Refuses options of the data for which the policies have no input."""
        for key in ("pad_missing_fields", "mask_padded_images", "max_delay"):
            if getattr(data, key):
                message = f"data.{key} is set, and the model type lerobot does not use it"
                yield Violation((f"data.{key}",), message, "error")
        if data.normalization.enabled:
            message = "data.normalization is enabled, but the processors of lerobot normalize"
            yield Violation(("data.normalization.enabled",), message, "error")

    def windows(self, config: LeRobotPolicyConfig) -> Mapping[str, Any]:
        """The steps that the policy takes; frames at the ends of episodes are padded."""
        observed, actions = package.steps_of(package.policy_config(config))
        past = max(0, -min([*observed, *actions]))
        return {
            "past_lowdim_steps": past,
            "future_lowdim_steps": max(actions),
            "max_padding_left": past,
            "max_padding_right": max(actions),
            "image_indices": observed,
        }

    def derive(
        self, config: LeRobotPolicyConfig, data: RoboticsDataConfig, info: "RoboticsInfo"
    ) -> tuple[LeRobotPolicyConfig, dict[str, str]]:
        """Fills in features and their shapes, and checks the steps of the data."""
        self._check_steps(config, data)
        cameras = self._cameras(config, data)
        fields: dict[str, list[str]] = {}
        for default, names in ((STATE, data.proprioception_fields), (ACTION, data.action_fields)):
            for name in names:
                feature = config.features.get(name, default)
                fields.setdefault(feature, []).append(name)
        shapes: dict[str, list[int]] = {}
        for feature, names in fields.items():
            shapes[feature] = [sum(info.widths(names))]
        if cameras:
            size = self._image_size(data, info)
            shapes |= {feature: [3, *size] for feature in cameras.values()}
        found = {"cameras": cameras, "fields": fields, "shapes": shapes}
        derived = config.model_copy(update=found)
        try:
            package.policy_config(derived).validate_features()
        except (ValueError, KeyError) as error:
            raise DataError(
                f"the policy {config.policy} cannot see your data: {error}",
                hint="choose cameras and fields with data.camera_names and "
                "data.proprioception_fields, or change model.config",
                code="data.mismatch",
            ) from None
        return derived, derivation_rules(config, found)

    def _check_steps(self, config: LeRobotPolicyConfig, data: RoboticsDataConfig) -> None:
        observed, actions = package.steps_of(package.policy_config(config))
        past = data.lowdim_past_timesteps or 0
        future = data.lowdim_future_timesteps or 0
        needed = max(0, -min([*observed, *actions]))
        problem = ""
        if past < needed or future < max(actions):
            problem = (
                f"{needed} steps before and {max(actions)} after the current one, and the windows "
                f"of your data have {past} and {future}"
            )
        elif data.cameras and list(data.image_indices) != observed:
            problem = f"images of the steps {observed}, and your data have {data.image_indices}"
        if problem:
            raise DataError(
                f"the policy {config.policy} takes {problem}",
                hint="leave data.windows out with data of the sink frames, or set model.config "
                "(chunk_size, horizon, n_obs_steps) to your windows",
                code="data.mismatch",
            )

    def _cameras(self, config: LeRobotPolicyConfig, data: RoboticsDataConfig) -> dict[str, str]:
        """Feature of each camera; a checkpoint keeps its names."""
        cameras: dict[str, str] = {}
        for name in data.cameras:
            cameras[name] = feature_of_camera(config.features.get(name, name))
        known = [
            name for name in config.config.get("input_features") or {} if kind_of(name) == "VISUAL"
        ]
        unknown = [name for name, feature in cameras.items() if known and feature not in known]
        unknown += [
            name
            for name in config.features
            if name not in [*cameras, *data.proprioception_fields, *data.action_fields]
        ]
        if unknown or len(set(cameras.values())) < len(cameras):
            theirs = ", ".join(name.removeprefix("observation.images.") for name in known)
            raise DataError(
                f"your cameras are {', '.join(data.cameras)}, the policy has {theirs or 'none'}: "
                f"{', '.join(unknown or cameras)} has no camera of its own there",
                hint="say which is which: --model.features OURS=THEIRS, and leave cameras out with "
                "data.camera_names",
                code="data.mismatch",
                details={"cameras": list(data.cameras), "known": known},
            )
        return cameras

    def _image_size(self, data: RoboticsDataConfig, info: "RoboticsInfo") -> tuple[int, int]:
        """(height, width) of the images of a sample."""
        from vlatool.loading.robotics.kind import RoboticsKind
        from vlatool.transforms.augmentation import central_box

        size = RoboticsKind().image_size(data, info)
        if size is None:
            raise DataError(
                "the size of the images is unknown: the first sample cannot be read",
                hint="`vlatool verify DATA` says why",
                code="data.missing",
            )
        crop = data.augmentation.crop_shape
        if crop is None:
            return size
        box = central_box(size, crop)
        return box.height, box.width

    def build(self, config: LeRobotPolicyConfig) -> Mapping[str, Part]:
        """The policy; reads small files of base models that it names."""
        return {"model": Part(package.new_policy(config), uses_all=False)}

    def adapter_targets(self, network: "nn.Module") -> str:
        """The layers that lerobot adapts; of policies for which it names none, all."""
        policy: Any = network
        targets = (policy._get_default_peft_targets() or {}).get("target_modules")
        return targets if isinstance(targets, str) else ".*"

    def load(
        self, config: LeRobotPolicyConfig, parts: Mapping[str, Part], names: Sequence[str]
    ) -> Sequence[str]:
        """Loads the base weights that the configuration names."""
        if "model" not in names:
            return ()
        keys = package.policy_config(config, for_files=True)
        if getattr(keys, "pretrained_backbone_weights", None) or getattr(
            keys, "load_vlm_weights", False
        ):
            policy = package.new_policy(config, with_base_weights=True)
            parts["model"].module.load_state_dict(policy.state_dict())
        return notes_on(config)

    def load_init(
        self,
        config: LeRobotPolicyConfig,
        parts: Mapping[str, Part],
        init: WeightsOrigin,
        init_except: Sequence[str],
    ) -> Sequence[str]:
        """Loads the weights of a run, or of a checkpoint of lerobot."""
        super().load_init(config, parts, init, init_except)
        return notes_on(config)

    def objective(
        self,
        config: LeRobotPolicyConfig,
        data: RoboticsDataConfig,
        info: "RoboticsInfo",
        parts: Mapping[str, Part],
    ) -> "LeRobotObjective":
        from vlatool.models.lerobot.batch import feature_statistics
        from vlatool.models.lerobot.objective import LeRobotObjective

        settings = package.policy_config(config)
        statistics = feature_statistics(config, settings, data, info.statistics)
        return LeRobotObjective(config, statistics, parts["model"].module)

    def batcher(
        self,
        config: LeRobotPolicyConfig,
        data: RoboticsDataConfig,
        assets: "RoboticsAssets",
        folder: Path | None,
        *,
        training: bool,
    ) -> "LeRobotBatcher":
        return self._batcher(config, data)

    def _batcher(self, config: LeRobotPolicyConfig, data: RoboticsDataConfig) -> "LeRobotBatcher":
        from vlatool.models.lerobot.batch import LeRobotBatcher

        settings = package.policy_config(config)
        observed = settings.observation_delta_indices
        return LeRobotBatcher(config, data, observed, settings.action_delta_indices)

    def example(
        self, config: LeRobotPolicyConfig, data: RoboticsDataConfig, size: int
    ) -> dict[str, Any]:
        """Gray images, slow waves as actions."""
        import torch

        settings = package.policy_config(config)
        observed, actions = package.steps_of(settings)
        steps = [] if settings.observation_delta_indices is None else [len(observed)]
        batch: dict[str, Any] = {}
        for feature, shape in (config.shapes or {}).items():
            if feature == ACTION:
                time = torch.arange(size)[:, None, None] + 0.2 * torch.arange(len(actions))[:, None]
                batch[ACTION] = torch.sin(time + torch.arange(shape[0]))
            elif kind_of(feature) == "VISUAL":
                batch[feature] = torch.full((size, *steps, *shape), 128, dtype=torch.uint8)
            else:
                batch[feature] = torch.sin(torch.arange(size * shape[0]) * 1.0)
                batch[feature] = batch[feature].reshape(size, *[1] * len(steps), -1)
                batch[feature] = batch[feature].expand(size, *steps, -1)
        padding = torch.zeros(size, len(actions), dtype=torch.bool)
        return {**batch, "action_is_pad": padding, "task": [""] * size}

    def policy(
        self,
        config: LeRobotPolicyConfig,
        parts: Mapping[str, "nn.Module"],
        assets: "RoboticsAssets",
        folder: Path | None,
    ) -> "RoboticsPolicy":
        from vlatool.models.lerobot.batch import feature_statistics
        from vlatool.models.lerobot.objective import LeRobotSampler
        from vlatool.models.policy import RoboticsPolicy

        network: Any = parts["model"]
        device = next(network.parameters()).device
        network.config.device = str(device)
        if folder is not None and (folder / package.PROCESSORS[0]).is_file():
            processors = package.stored_processors(config, folder, device)
        else:
            data = assets.data
            made = feature_statistics(config, network.config, data, assets.statistics)
            processors = package.new_processors(config, made.seen, made.commanded, device)
        past = assets.data.lowdim_past_timesteps or 0
        rows = chunk_rows(network.config)
        sampler = LeRobotSampler(network, processors, past, rows)
        batcher = self.batcher(config, assets.data, assets, folder, training=False)
        policy = RoboticsPolicy(sampler, batcher, assets, device)
        policy.horizon = rows
        reads_text = any("token" in type(step).__name__.lower() for step in processors[0].steps)
        policy.sees = replace(policy.sees, instruction=reads_text)
        return policy


def chunk_rows(settings: Any) -> int:
    """Number of steps, from the current one on, that the policy returns."""
    future = sum(step >= 0 for step in settings.action_delta_indices)
    if hasattr(settings, "action_chunk_size"):
        return min(settings.action_chunk_size, future)
    return min(settings.n_action_steps, future) if hasattr(settings, "horizon") else future


def notes_on(config: LeRobotPolicyConfig) -> list[str]:
    """The order of fields in each feature, and cameras that your data do not have."""
    notes: list[str] = []
    for feature, names in config.fields.items():
        (width,) = (config.shapes or {})[feature]
        notes.append(f"{feature} ({width} numbers) is {', '.join(names)}, in this order")
    for name, feature in config.cameras.items():
        notes.append(f"camera {name} is {feature}")
    stored = config.config.get("input_features") or {}
    empty = [
        name for name in stored if kind_of(name) == "VISUAL" and name not in config.cameras.values()
    ]
    if empty:
        notes.append(f"your data have no {', '.join(empty)}: they are empty, as in lerobot")
    return notes
