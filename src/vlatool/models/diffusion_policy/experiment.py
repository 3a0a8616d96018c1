"""Experiments of the published program: reading, and export of runs. No torch.

Source: formats/published-runs 1 to 5; reference/training 1.7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.config.resolve import ReadOptions, load_config
from vlatool.episode import PoseGroup
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter
from vlatool.formats.base_model import TOKENIZER
from vlatool.formats.contract import CONTRACT
from vlatool.formats.experiment import layout as experiment_layout
from vlatool.formats.run.checkpoint import CheckpointManifest
from vlatool.formats.run.layout import RunDir
from vlatool.formats.shards.layout import read_preprocessing_config
from vlatool.formats.stats.layout import Statistics
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsAssets, assets_of
from vlatool.models.diffusion_policy.config import (
    DiffusionPolicyConfig,
    EulerConfig,
)
from vlatool.models.diffusion_policy.published import split_keys
from vlatool.models.published import Exported, PublishedFiles
from vlatool.models.trained import TrainedConfig, with_weights
from vlatool.storage.atomic import write_bytes
from vlatool.storage.cache import local_copy
from vlatool.transforms.normalize import field_width
from vlatool.transforms.relative import reference_keys

if TYPE_CHECKING:
    from torch import Tensor

    from vlatool.models.published import Trained

_IMAGE_WORDS = "image_words"


# reading


def find_published(location: Path) -> PublishedFiles | None:
    """Files of an experiment, or of one of its checkpoints; None for other locations. Of an
    experiment it is the checkpoint with the highest number.
    """
    if location.is_file():
        files = experiment_layout.CheckpointFiles.with_file(location)
        if files is None:
            return None
        experiment = experiment_layout.Experiment.of_file(location)
        config = None if experiment is None else experiment.config
        if location == files.averaged:
            return PublishedFiles(location, config, "ema")
        return PublishedFiles(location, config, "raw")
    checkpoints = (
        experiment_layout.Experiment(location).checkpoints()
        if experiment_layout.is_experiment(location)
        else []
    )
    if not checkpoints:
        return None
    files = checkpoints[-1]
    config = experiment_layout.Experiment(location).config
    if not files.raw.is_file():
        return PublishedFiles(files.averaged, config, "ema")
    averaged = files.averaged if files.averaged.is_file() else None
    return PublishedFiles(files.raw, config, "raw", averaged)


def progress_files(files: PublishedFiles, *, averaged: bool) -> list[Path]:
    """Files of a checkpoint with the state of training: raw weights, optimizer, averages."""
    checkpoint = experiment_layout.CheckpointFiles.with_file(files.weights)
    if checkpoint is None:
        return []
    return [checkpoint.raw, checkpoint.optimizer, *([checkpoint.averaged] if averaged else [])]


@dataclass(frozen=True)
class OpenedExperiment:
    """Content of the small files of an experiment."""

    data: RoboticsDataConfig  # section `data`, derived
    model: DiffusionPolicyConfig  # section `model`, not derived
    assets: RoboticsAssets  # assets of the data kind
    folder: Path | None  # local folder with the text tokenizer; None: it is that of the base model


def read_experiment(files: PublishedFiles) -> OpenedExperiment:
    if files.config is None:
        raise DataError.at(
            files.weights,
            f"there is no experiment around this checkpoint: {experiment_layout.CONFIG} is missing",
            hint="copy the whole folder of the experiment, or start training from the file with "
            "`vlatool finetune --from`",
            code="data.broken",
        )
    experiment = experiment_layout.Experiment(files.config.parent)
    tree = experiment.tree()
    section = tree.get("model")
    kind = section.get("type") if isinstance(section, dict) else None
    if kind != "diffusion_policy":
        raise DataError.at(
            experiment.config,
            f"the model type is {kind!r}, expected 'diffusion_policy'",
            hint="give the experiment of a policy",
            code="data.missing",
        )
    lenient = ReadOptions(compat=True)
    files_read = experiment.config_files
    config = load_config(TrainedConfig, files=files_read, read_options=lenient).config
    options = experiment.options()
    statistics = experiment.statistics()
    data: Any = config.data
    data = _with_recorded(data, options, statistics)
    # Published options have no pose groups; those of the configuration count, or the names.
    groups = options.get("pose_groups") or tree.get("data", {}).get("pose_groups") or None
    past = data.normalization.lowdim_past_timesteps
    assets = assets_of(data, statistics, past, {**options, "pose_groups": groups})
    model: Any = config.model
    if not experiment.is_export:
        model = _with_image_words(model)
    folder = experiment.tokenizer_folder
    return OpenedExperiment(
        data, model, assets, (None if folder is None else local_copy(folder, [TOKENIZER]))
    )


def _with_recorded(
    data: RoboticsDataConfig, options: Mapping[str, Any], statistics: Statistics
) -> RoboticsDataConfig:
    """The section with unset values filled in from the other files, as training derives them."""
    past = options.get("past_lowdim_steps")
    future = options.get("future_lowdim_steps")
    steps = {"lowdim_past_timesteps": past, "lowdim_future_timesteps": future}
    scaled = data.normalization
    scaled = scaled.model_copy(update=_unset(scaled, steps))
    steps = {name: getattr(scaled, name) for name in steps}
    recorded = {name: list(options.get(name) or []) for name in ("camera_names", "image_indices")}
    data = data.model_copy(update=_unset(data, {**recorded, **steps}) | {"normalization": scaled})
    for key, value in steps.items():
        if value is None:
            raise DataError(
                f"data.{key} of the experiment is unknown",
                hint="copy the experiment again, with its preprocessing_config.yaml",
                code="data.broken",
            )
    widths = {
        "action_dim": _width(data.action_fields, statistics),
        "proprioception_dim": _width(data.proprioception_fields, statistics),
    }
    return data.model_copy(update=_unset(data, widths))


def _unset(section: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of keys that are null or empty in a section."""
    return {name: value for name, value in values.items() if getattr(section, name) in (None, [])}


def _width(fields: list[str], statistics: Statistics) -> int:
    """Sum of the widths of fields; those without statistics are reported by the normalization."""
    return sum(field_width(name, statistics[name]) for name in fields if name in statistics)


def _with_image_words(model: DiffusionPolicyConfig) -> DiffusionPolicyConfig:
    """The section with the words that the published processor writes, which has no key for it."""
    backbone = model.vision_language_backbone
    if _IMAGE_WORDS not in type(backbone).model_fields:
        return model
    worded = backbone.model_copy(update={_IMAGE_WORDS: True})
    return model.model_copy(update={"vision_language_backbone": worded})


# export


def prepare_export(trained: "Trained", tree: Mapping[str, Any], reporter: Reporter) -> Exported:
    from vlatool.models.diffusion_policy.weights import export_published

    if trained.origin.run is None:
        raise UsageError(
            f"{trained.origin.text}: is in the published layout already",
            hint="give a run of `vlatool train`",
            code="usage.unsupported",
        )
    model: Any = trained.config.model
    raw = trained if trained.origin.weights == "raw" else with_weights(trained, "raw")
    states = {experiment_layout.WEIGHTS: export_published(model, raw.parts["model"].state_dict())}
    if trained.origin.weights == "ema":
        states[experiment_layout.AVERAGE] = export_published(
            model, trained.parts["model"].state_dict()
        )
    for code, message in _differences(trained):
        reporter.warn(code, message)
    return Exported(
        files=experiment_layout.FILES,
        weights=tuple(states),
        parameters=sum(tensor.numel() for tensor in states[experiment_layout.WEIGHTS].values()),
        summary=" and ".join(states),
        write=partial(_write_experiment, trained, tree, states),
    )


def _differences(trained: "Trained") -> list[tuple[str, str]]:
    model: Any = trained.config.model
    differences: list[tuple[str, str]] = []
    if getattr(model.vision_language_backbone, _IMAGE_WORDS, True) is False:
        message = (
            "the published program prepends `<image> ` to instructions, but this policy was "
            "trained without it. Train with model.vision_language_backbone.image_words=true to get "
            "equal actions in both."
        )
        differences.append(("export.image_words", message))
    if model.is_flow and not isinstance(model.chosen_solver, EulerConfig):
        message = f"the published program samples with euler, not {model.chosen_solver.type}"
        differences.append(("export.solver", message))
    groups = [group for group in trained.assets.pose_groups if group.reference_position]
    named = [group for group in groups if reference_keys(group) != _published_reference(group)]
    if named:
        message = (
            f"the published program takes the reference of the pose {named[0].name!r} from "
            f"{_published_reference(named[0])[0]}, this policy from {reference_keys(named[0])[0]}"
        )
        differences.append(("export.reference_pose", message))
    return differences


def _published_reference(group: PoseGroup) -> tuple[str, str]:
    return reference_keys(PoseGroup(group.name, group.position_key, group.rotation_key))


def _write_experiment(
    trained: "Trained",
    tree: Mapping[str, Any],
    states: "Mapping[str, Mapping[str, Tensor]]",
    folder: Path,
) -> Mapping[str, Any]:
    from vlatool.models.diffusion_policy.weights import write_published, write_published_average

    assert trained.origin.checkpoint is not None
    assert trained.folder is not None
    run = RunDir(trained.folder)
    model: Any = trained.config.model
    experiment_layout.write_configs(
        folder, published_tree(tree, model, trained.assets), _own_keys(trained.config)
    )
    experiment_layout.write_metadata(
        folder, tree["data"]["dataset_manifest"], read_preprocessing_config(run.root)
    )
    for path in (run.stats, run.options, run.root / TOKENIZER, run.root / CONTRACT.name):
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
    step = CheckpointManifest.read(trained.origin.checkpoint).step
    write_published(
        folder / experiment_layout.WEIGHTS,
        states[experiment_layout.WEIGHTS],
        experiment_layout.EXPORT_NUMBER,
        step,
    )
    if experiment_layout.AVERAGE in states:
        write_published_average(
            folder / experiment_layout.AVERAGE,
            states[experiment_layout.AVERAGE],
            experiment_layout.EXPORT_NUMBER,
            step,
        )
    return {"averaged": experiment_layout.AVERAGE in states}


def published_tree(
    tree: Mapping[str, Any], model: DiffusionPolicyConfig, assets: RoboticsAssets
) -> dict[str, Any]:
    published, _ = split_keys(tree)
    data = published["data"]
    hparams = published["hparams"]
    manifests = data["dataset_manifest"]
    published["model"] = _without_init(published["model"])
    data |= {
        "dataset_statistics": data["dataset_statistics"]
        or [*map(experiment_layout.statistics_beside, manifests)],
        "dataset_modality": ["robotics"] * len(manifests),
        "dataset_weighting": data["dataset_weighting"] or [1.0] * len(manifests),
        "processor": data["processor"]
        or getattr(model.vision_language_backbone, "hf_pretrained", None),
        "pose_groups": [
            {key: getattr(group, key) for key in ("name", "position_key", "rotation_key")}
            for group in assets.pose_groups
        ],
    }
    hparams |= {
        "loss_function": "mse",
        "per_gpu_batch_size": hparams.get("per_gpu_batch_size", hparams["global_batch_size"]),
    }
    published["distributed"]["dist_backend"] = "nccl"
    if tree.get("total_train_steps"):
        published["total_train_samples"] = tree["total_train_steps"] * hparams["global_batch_size"]
    return published


def _without_init(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section, and those below it, without initial weights."""
    plain = {
        key: _without_init(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
    }
    none = {"resume_from_checkpoint": None, "resume_weights_only": False}
    return {**plain, **{key: value for key, value in none.items() if key in plain}}


def _own_keys(config: TrainedConfig) -> dict[str, Any]:
    """Keys of the sections `model` and `data` that are not published and not default."""
    sections = {"model", "data"}
    own = split_keys(config.model_dump(mode="json", include=sections))[1]
    return _common(own, config.model_dump(mode="json", include=sections, exclude_defaults=True))


def _common(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _common(value, other[key]) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if key in other
    }
