"""The model type `diffusion_policy`; no torch.

Source: reference/policy 1, 2; reference/training 1.7.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel, Violation, derivation_rules
from vlatool.errors import DataError
from vlatool.formats.base_model import TOKENIZER
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models import published
from vlatool.models.base import ModelType, Part
from vlatool.models.diffusion_policy.config import (
    BaseModelConfig,
    DiffusionPolicyConfig,
    KeypointBackboneConfig,
    NetworkConfig,
    TextBackboneConfig,
    ViTBackboneConfig,
)
from vlatool.models.trained import existing_weights

if TYPE_CHECKING:
    from torch import nn

    from vlatool.events import Reporter
    from vlatool.loading.robotics.info import RoboticsInfo
    from vlatool.loading.robotics.kind import RoboticsAssets
    from vlatool.models.diffusion_policy.batch import PolicyBatcher
    from vlatool.models.diffusion_policy.objective import DenoisingObjective
    from vlatool.models.policy import RoboticsPolicy
    from vlatool.models.published import Trained

# Type of the backbone of policies without cameras.
_WITHOUT_IMAGES = "text_backbone"
# Backbones that learn all their weights from the data, so that data without cameras can do without.
_FROM_SCRATCH = (KeypointBackboneConfig, ViTBackboneConfig)
# Values of the published keys of a policy without initial weights.
_NO_INIT: Mapping[str, Any] = {"resume_from_checkpoint": None, "resume_weights_only": False}


class ExperimentLayout(published.Layout):
    """Experiments of the published program."""

    def keys_of_run(
        self, section: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Returns what `resume_from_checkpoint` and `resume_weights_only` stand for."""
        location = section.get("resume_from_checkpoint")
        if location is None:
            return {}, {}
        weights_only = {} if section.get("resume_weights_only") else {"init_weights_only": False}
        return {"init_from": str(location), **weights_only}, _NO_INIT

    def write(
        self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter"
    ) -> published.Exported:
        from vlatool.models.diffusion_policy.experiment import prepare_export

        return prepare_export(trained, tree, reporter)

    def problem(self, config: DiffusionPolicyConfig) -> str:
        from vlatool.models.diffusion_policy.published import export_problem

        return export_problem(config)

    def recognize(self, location: Path) -> published.PublishedFiles | None:
        """The newest checkpoint of an experiment, or a file of one."""
        from vlatool.models.diffusion_policy.experiment import find_published

        return find_published(location)

    def open(self, files: published.PublishedFiles, path: Path) -> published.PublishedModel:
        """Opens an experiment; base models that the run of an export has read are not needed."""
        import torch

        from vlatool.models.diffusion_policy.experiment import read_experiment
        from vlatool.models.diffusion_policy.weights import (
            check_state,
            load_state,
            state_of,
        )
        from vlatool.models.weights import read_pickled_weights

        model_type = DiffusionPolicyType()
        opened = read_experiment(files)
        config = model_type.restore_base_config(opened.model, files.before)
        config, _ = model_type.derive(config, opened.data, None)
        state = state_of(read_pickled_weights(path), files.weights)
        with torch.device("meta"):
            parts = model_type.build(config)
        check_state(parts["model"].module, state, files.weights)
        parts = model_type.build(config)
        imported = load_state(parts["model"].module, state, files.weights)
        return published.PublishedModel(
            config=config,
            parts={name: part.module for name, part in parts.items()},
            assets=opened.assets,
            data=opened.data,
            folder=opened.folder,
            notes=[*imported.notes(files.weights)],
        )

    def progress_files(self, files: published.PublishedFiles, *, averaged: bool) -> Sequence[Path]:
        from vlatool.models.diffusion_policy.experiment import progress_files

        return progress_files(files, averaged=averaged)

    def open_progress(
        self,
        config: DiffusionPolicyConfig,
        modules: Mapping[str, "nn.Module"],
        paths: Sequence[Path],
    ) -> published.PublishedProgress:
        from vlatool.models.diffusion_policy.weights import open_progress

        return open_progress(config, modules["model"], paths)


class DiffusionPolicyType(ModelType):
    """The model type `diffusion_policy`."""

    name: ClassVar[str] = "diffusion_policy"
    Config: ClassVar[type[ConfigModel]] = DiffusionPolicyConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("sample",)}
    layout: ClassVar[published.Layout] = ExperimentLayout()

    def violations(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig
    ) -> Iterator[Violation]:
        """Clamp limits that do not match the normalization, and a processor that is not used."""
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
        """Checks that base models and the initial weights of sections exist. A run with initial
        weights may have what it needs of a base model.
        """
        for section in (config.vision_language_backbone, config.transformer):
            if section.resume_from_checkpoint is not None:
                existing_weights(section.resume_from_checkpoint)
            if isinstance(section, BaseModelConfig) and init_from is None:
                section.check_base()

    def restore_base_config(
        self, config: DiffusionPolicyConfig, before: ConfigModel | None
    ) -> DiffusionPolicyConfig:
        if not isinstance(before, DiffusionPolicyConfig):
            return config
        backbone = config.vision_language_backbone.restore_base_config(
            before.vision_language_backbone
        )
        denoiser = config.transformer.restore_base_config(before.transformer)
        return config.model_copy(
            update={"vision_language_backbone": backbone, "transformer": denoiser}
        )

    def derive(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, info: "RoboticsInfo | None"
    ) -> tuple[DiffusionPolicyConfig, dict[str, str]]:
        """Derives dimensions, the number of cameras, and keys of base models.

        Without a camera in the data, a backbone that is trained from scratch becomes a text
        backbone with the same width and text encoder.
        """
        section = config.vision_language_backbone
        swap_rules: dict[str, str] = {}
        if not data.cameras and isinstance(section, _FROM_SCRATCH):
            rule = "data without cameras, so the policy sees states and the instruction alone"
            swap_rules["vision_language_backbone.type"] = rule
            text_backbone = TextBackboneConfig(
                hidden_dim=section.hidden_dim, text_encoder=section.text_encoder
            )
            config = config.model_copy(update={"vision_language_backbone": text_backbone})
        elif not data.cameras and section.type != _WITHOUT_IMAGES:
            raise DataError(
                f"the data have no camera, and {section.type} encodes images",
                hint="train with --preset policy-state, whose backbone has no images "
                f"({_WITHOUT_IMAGES}), or preprocess episodes that have images",
                code="data.missing",
            )
        widths = ("action_dim", "proprioception_dim")
        update: dict[str, Any] = {name: getattr(data, name) for name in widths}
        rules = derivation_rules(config, update) | swap_rules
        for name in ("vision_language_backbone", "transformer"):
            network: NetworkConfig = getattr(config, name)
            update[name], section_rules = network.derive(data)
            rules |= {f"{name}.{key}": rule for key, rule in section_rules.items()}
        return config.model_copy(update=update), rules

    def build(self, config: DiffusionPolicyConfig) -> Mapping[str, Part]:
        """The network, as the part `model`."""
        from vlatool.models.diffusion_policy.model import DiffusionPolicy

        network = DiffusionPolicy(config)
        return {"model": Part(network, blocks=network.blocks())}

    def load(
        self, config: DiffusionPolicyConfig, parts: Mapping[str, Part], names: Sequence[str]
    ) -> Sequence[str]:
        """Loads the weights of base models, or those that sections name."""
        from vlatool.models.diffusion_policy.weights import SECTIONS, load_sections

        if "model" not in names:
            return ()
        return load_sections(config, parts["model"].module, SECTIONS)

    def load_init(
        self,
        config: DiffusionPolicyConfig,
        parts: Mapping[str, Part],
        init: published.WeightsOrigin,
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
        """Writes the text tokenizer; that of the same base model is copied."""
        section = config.vision_language_backbone
        base = getattr(before, "vision_language_backbone", None)
        if source and isinstance(section, BaseModelConfig) and isinstance(base, BaseModelConfig):
            is_same = (base.hf_pretrained, base.revision) == (
                section.hf_pretrained,
                section.revision,
            )
            if is_same and (source / TOKENIZER).is_file():
                section.save_assets(folder, source)
                return
        section.save_assets(folder)

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
    fields = [data.normalization.for_field(name) for name in data.action_fields]
    scalings = [scaling for scaling in fields if scaling.enabled] or [data.normalization]
    return all(scaling.centered_norm or scaling.method == "std" for scaling in scalings)
