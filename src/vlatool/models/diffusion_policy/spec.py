"""The model type `diffusion_policy`: what vlatool calls, in the order of a run. No torch.

Source: reference/policy 1, 2; reference/training 1.6.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel, Violation
from vlatool.datasets.base_model import TOKENIZER
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.backbones.config import BaseModelConfig
from vlatool.models.base import ModelType, Part
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.experiment import ExperimentLayout
from vlatool.models.published import Layout, WeightsOrigin

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.robotics.kind import RoboticsAssets
    from vlatool.loading.robotics.mixture import RoboticsInfo
    from vlatool.models.diffusion_policy.batch import PolicyBatcher
    from vlatool.models.diffusion_policy.objective import DenoisingObjective
    from vlatool.models.policy import RoboticsPolicy


class DiffusionPolicyType(ModelType):
    """The model type `diffusion_policy`."""

    name: ClassVar[str] = "diffusion_policy"
    Config: ClassVar[type[ConfigModel]] = DiffusionPolicyConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("sample",)}
    layout: ClassVar[Layout] = ExperimentLayout()

    def violations(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig
    ) -> Iterator[Violation]:
        """Clamp limits that do not match the normalization, and a processor that has no effect."""
        limits = config.noise_scheduler.clamp_range
        key = "model.noise_scheduler.clamp_range"
        scaling = data.normalization
        if limits is not None and not scaling.enabled:
            message = f"{key} is {list(limits)}, but actions are not normalized"
            yield Violation((key, "data.normalization.enabled"), message, "warning")
        elif limits is not None and limits[0] == -limits[1] and not _is_centered(data):
            message = f"{key} is {list(limits)}, but actions are normalized to [0, 1], not [-1, 1]"
            keys = (key, "data.normalization.centered_norm", "data.normalization.method")
            yield Violation(keys, message)
        base = getattr(config.vision_language_backbone, "hf_pretrained", None)
        if data.processor not in (None, base):
            reason = "has no base model" if base is None else f"uses the processor of {base}"
            message = f"data.processor is {data.processor!r}, but the backbone {reason}"
            yield Violation(("data.processor",), message)

    def check_init(self, config: DiffusionPolicyConfig, init_from: str | None) -> None:
        """Checks that base models and the initial weights of sections exist.

        A run of the initial weights may already have what is needed of a base model.
        """
        for section in (config.vision_language_backbone, config.transformer):
            if section.resume_from_checkpoint is not None:
                WeightsOrigin.find(section.resume_from_checkpoint)
            if isinstance(section, BaseModelConfig) and init_from is None:
                section.check_base()

    def restore_base_config(
        self, config: DiffusionPolicyConfig, before: ConfigModel | None
    ) -> DiffusionPolicyConfig:
        return config.restore_base_config(before)

    def derive(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, info: "RoboticsInfo | None"
    ) -> tuple[DiffusionPolicyConfig, dict[str, str]]:
        return config.derive(data)

    def build(self, config: DiffusionPolicyConfig) -> Mapping[str, Part]:
        """The network, as the part `model`."""
        from vlatool.models.diffusion_policy.model import DiffusionPolicy

        network = DiffusionPolicy(config)
        return {"model": Part(network, blocks=network.blocks())}

    def load(
        self, config: DiffusionPolicyConfig, parts: Mapping[str, Part], names: Sequence[str]
    ) -> Sequence[str]:
        """Loads the weights of base models, or the weights that sections name."""
        from vlatool.models.diffusion_policy.weights import SECTIONS, load_sections

        if "model" not in names:
            return ()
        return load_sections(config, parts["model"].module, SECTIONS)

    def load_init(
        self,
        config: DiffusionPolicyConfig,
        parts: Mapping[str, Part],
        init: WeightsOrigin,
        init_except: Sequence[str],
    ) -> Sequence[str]:
        from vlatool.models.diffusion_policy.weights import load_policy, load_sections

        network = parts["model"].module
        notes = load_sections(config, network, init_except)
        imported = load_policy(network, init.text, excluded=init_except)
        return [*notes, *imported.notes(init.file)]

    def save_assets(
        self,
        config: DiffusionPolicyConfig,
        folder: Path,
        before: ConfigModel | None = None,
        source: Path | None = None,
    ) -> None:
        """Writes the text tokenizer; copies it if the initial weights have the same base model."""
        section = config.vision_language_backbone
        base = getattr(before, "vision_language_backbone", None)
        has_tokenizer = False
        if source and isinstance(section, BaseModelConfig) and isinstance(base, BaseModelConfig):
            is_same = base.hf_pretrained == section.hf_pretrained
            is_same = is_same and base.revision == section.revision
            has_tokenizer = is_same and (source / TOKENIZER).is_file()
        section.save_assets(folder, source if has_tokenizer else None)

    def objective(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        info: "RoboticsInfo",
        parts: Mapping[str, Part],
    ) -> "DenoisingObjective":
        """Squared error of the prediction, and errors of sampled chunks."""
        from vlatool.loading.robotics.statistics import Normalizer
        from vlatool.models.diffusion_policy.objective import DenoisingObjective, LossBreakdown
        from vlatool.models.policy import ActionUnits

        widths = dict(zip(data.action_fields, info.widths(data.action_fields), strict=True))
        breakdown = LossBreakdown(widths, data.dataset_manifest, data.val_dataset_manifest)
        normalizer = Normalizer(data, info.statistics, info.statistics_past)
        units = ActionUnits(data, normalizer)
        past = data.lowdim_past_timesteps or 0
        return DenoisingObjective(config, breakdown, units, data.max_delay, past)

    def batcher(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        assets: "RoboticsAssets",
        folder: Path | None,
        *,
        training: bool,
    ) -> "PolicyBatcher":
        from vlatool.models.diffusion_policy.batch import PolicyBatcher

        return PolicyBatcher(config, data, assets.normalizer, folder)

    def example(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, size: int
    ) -> dict[str, Any]:
        """Gray images, smooth actions, empty instructions."""
        from vlatool.models.diffusion_policy.batch import example_batch

        return example_batch(config, data, size)

    def flops(self, config: DiffusionPolicyConfig, data: RoboticsDataConfig) -> float | None:
        from vlatool.models.diffusion_policy.objective import DenoisingObjective
        from vlatool.models.flops import objective_losses, sample_flops

        losses = objective_losses(lambda parts: DenoisingObjective(config))
        return sample_flops(self, config, data, losses)

    def policy(
        self,
        config: DiffusionPolicyConfig,
        parts: Mapping[str, "nn.Module"],
        assets: "RoboticsAssets",
        folder: Path | None,
    ) -> "RoboticsPolicy":
        from vlatool.models.diffusion_policy.batch import PolicyBatcher
        from vlatool.models.policy import RoboticsPolicy

        network: Any = parts["model"]
        batcher = PolicyBatcher(config, assets.data, assets.normalizer, folder)
        device = network.output_layer.weight.device
        return RoboticsPolicy(network.sample, batcher, assets, device)


def _is_centered(data: RoboticsDataConfig) -> bool:
    """True if all actions that are normalized lie around 0."""
    fields = [data.normalization.for_field(name) for name in data.action_fields]
    scalings = [scaling for scaling in fields if scaling.enabled] or [data.normalization]
    return all(scaling.centered_norm or scaling.method == "std" for scaling in scalings)
