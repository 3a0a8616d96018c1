"""Reads experiments of the published program as runs, and writes them in `export`. No torch.

An experiment is a folder with configuration, statistics and checkpoints. `ExperimentLayout` has
what vlatool calls, `vlatool.checkpoints.experiment` the files on disk. Source:
formats/published-runs 1 to 5; reference/training 1.6.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.contract import CONTRACT
from vlatool.checkpoints.experiment import layout
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import ReadOptions, load_config
from vlatool.datasets.base_model import TOKENIZER
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.datasets.stats.layout import Statistics
from vlatool.episode import PoseGroup
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsAssets, assets_of
from vlatool.models import published
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, EulerConfig
from vlatool.models.diffusion_policy.published import export_problem, split_keys
from vlatool.models.trained import TrainedConfig, with_weights
from vlatool.storage.atomic import write_bytes
from vlatool.storage.cache import local_copy
from vlatool.transforms.normalize import field_width
from vlatool.transforms.relative import reference_keys

if TYPE_CHECKING:
    from torch import Tensor

# Values of the published keys of a policy without initial weights.
_NO_INIT: Mapping[str, Any] = {"resume_from_checkpoint": None, "resume_weights_only": False}
_IMAGE_WORDS = "image_words"


class ExperimentLayout(published.Layout):
    """Experiments of the published program."""

    def keys_of_run(
        self, section: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Returns what `resume_from_checkpoint` and `resume_weights_only` stand for."""
        location = section.get("resume_from_checkpoint")
        if location is None:
            return {}, {}
        keys: dict[str, Any] = {"init_from": str(location)}
        if not section.get("resume_weights_only"):
            keys["init_weights_only"] = False
        return keys, _NO_INIT

    def recognize(self, location: Path) -> published.PublishedFiles | None:
        """The newest checkpoint of an experiment, or a file of one."""
        if location.is_file():
            files = layout.CheckpointFiles.with_file(location)
            if files is None:
                return None
            experiment = layout.Experiment.of_file(location)
            config = None if experiment is None else experiment.config
            kind = "ema" if location == files.averaged else "raw"
            return published.PublishedFiles(location, config, kind)
        if not layout.is_experiment(location):
            return None
        experiment = layout.Experiment(location)
        checkpoints = experiment.checkpoints()
        if not checkpoints:
            return None
        files = checkpoints[-1]
        if not files.raw.is_file():
            return published.PublishedFiles(files.averaged, experiment.config, "ema")
        averaged = files.averaged if files.averaged.is_file() else None
        return published.PublishedFiles(files.raw, experiment.config, "raw", averaged)

    def open(self, files: published.PublishedFiles, path: Path) -> published.PublishedModel:
        """Opens an experiment; base models that the run of an export has read are not needed."""
        from vlatool.models.diffusion_policy.model import DiffusionPolicy
        from vlatool.models.diffusion_policy.weights import import_published, state_of
        from vlatool.models.weights import build_with, read_pickled_weights

        experiment = _experiment_of(files)
        config, data, assets = _read(experiment)
        config = config.restore_base_config(files.before)
        config, _ = config.derive(data)
        state = state_of(read_pickled_weights(path), files.weights)
        network = build_with(
            lambda: DiffusionPolicy(config),
            lambda network: import_published(state, network).weights,
            files.weights,
        )
        folder = experiment.tokenizer_folder
        return published.PublishedModel(
            config=config,
            parts={"model": network},
            assets=assets,
            data=data,
            folder=None if folder is None else local_copy(folder, [TOKENIZER]),
            notes=[*import_published(state, network).notes(files.weights)],
        )

    def problem(self, config: DiffusionPolicyConfig) -> str:
        return export_problem(config)

    def write(
        self, trained: published.Trained, tree: Mapping[str, Any], reporter: Reporter
    ) -> published.Exported:
        from vlatool.models.diffusion_policy.weights import export_published

        if trained.origin.run is None:
            raise UsageError(
                f"{trained.origin.text}: already has the published layout",
                hint="give a run of `vlatool train`",
                code="usage.unsupported",
            )
        model = trained.config.model
        raw = trained if trained.origin.weights == "raw" else with_weights(trained, "raw")
        states = {layout.WEIGHTS: export_published(model, raw.parts["model"].state_dict())}
        if trained.origin.weights == "ema":
            averaged = trained.parts["model"].state_dict()
            states[layout.AVERAGE] = export_published(model, averaged)
        _warn_of_differences(trained, reporter)
        return published.Exported(
            files=layout.FILES,
            weights=tuple(states),
            parameters=sum(tensor.numel() for tensor in states[layout.WEIGHTS].values()),
            summary=" and ".join(states),
            write=lambda folder: _write(trained, tree, states, folder),
        )


# reading


def _experiment_of(files: published.PublishedFiles) -> layout.Experiment:
    """The experiment with a checkpoint; raises DataError if it has none, or is no policy."""
    if files.config is None:
        raise DataError.at(
            files.weights,
            f"this checkpoint is not in an experiment: {layout.CONFIG} is missing",
            hint="copy the complete folder of the experiment, or train from the file alone: "
            "`vlatool finetune --from`",
            code="data.broken",
        )
    experiment = layout.Experiment(files.config.parent)
    section = experiment.tree().get("model")
    kind = section.get("type") if isinstance(section, dict) else None
    if kind != "diffusion_policy":
        raise DataError.at(
            experiment.config,
            f"the model type is {kind!r}, not 'diffusion_policy'",
            hint="give the experiment of a policy",
            code="data.missing",
        )
    return experiment


def _read(
    experiment: layout.Experiment,
) -> tuple[DiffusionPolicyConfig, RoboticsDataConfig, RoboticsAssets]:
    """The section `model`, not derived, the section `data`, derived, and the assets of the data."""
    sections: Any = load_config(
        TrainedConfig, files=experiment.config_files, read_options=ReadOptions(compat=True)
    ).config
    options = experiment.options()
    statistics = experiment.statistics()
    data = _with_recorded(sections.data, options, statistics)
    # Published options have no pose groups; those of the configuration count, or the names.
    groups = options.get("pose_groups") or experiment.tree().get("data", {}).get("pose_groups")
    options["pose_groups"] = groups or None
    past = data.normalization.lowdim_past_timesteps
    assert past is not None
    assets = assets_of(data, statistics, past, options)
    model: DiffusionPolicyConfig = sections.model
    backbone = model.vision_language_backbone
    if not experiment.is_export and _IMAGE_WORDS in type(backbone).model_fields:
        # The published processor writes these words, and has no key for it.
        backbone = backbone.model_copy(update={_IMAGE_WORDS: True})
        model = model.model_copy(update={"vision_language_backbone": backbone})
    return model, data, assets


def _with_recorded(
    data: RoboticsDataConfig, options: Mapping[str, Any], statistics: Statistics
) -> RoboticsDataConfig:
    """The section; values that are not set come from the other files, as training derives them."""
    scaling = _filled(
        data.normalization,
        {
            "lowdim_past_timesteps": options.get("past_lowdim_steps"),
            "lowdim_future_timesteps": options.get("future_lowdim_steps"),
        },
    )
    steps = {
        "lowdim_past_timesteps": scaling.lowdim_past_timesteps,
        "lowdim_future_timesteps": scaling.lowdim_future_timesteps,
    }
    for key, value in steps.items():
        if value is None:
            raise DataError(
                f"no file of the experiment says data.{key}",
                hint="copy the experiment again, with its preprocessing_config.yaml",
                code="data.broken",
            )
    cameras = list(options.get("camera_names") or [])
    indices = list(options.get("image_indices") or [])
    data = _filled(data, {"camera_names": cameras, "image_indices": indices, **steps})
    widths = {
        "action_dim": _width(data.action_fields, statistics),
        "proprioception_dim": _width(data.proprioception_fields, statistics),
    }
    return _filled(data, widths).model_copy(update={"normalization": scaling})


def _filled(section: Any, values: Mapping[str, Any]) -> Any:
    """The section with values for its keys that are null or empty."""
    empty = [name for name in values if getattr(section, name) in (None, [])]
    return section.model_copy(update={name: values[name] for name in empty})


def _width(fields: Sequence[str], statistics: Statistics) -> int:
    """Sum of the widths of fields; the normalization reports fields without statistics."""
    return sum(field_width(name, statistics[name]) for name in fields if name in statistics)


# export


def _warn_of_differences(trained: published.Trained, reporter: Reporter) -> None:
    """Warns if the published program would run this policy in another way."""
    model = trained.config.model
    if getattr(model.vision_language_backbone, _IMAGE_WORDS, True) is False:
        reporter.warn(
            "export.image_words",
            "the published program writes `<image> ` before instructions, but this policy was "
            "trained without; train with model.vision_language_backbone.image_words=true for "
            "equal actions in both",
        )
    if model.is_flow and not isinstance(model.chosen_solver, EulerConfig):
        reporter.warn(
            "export.solver",
            f"the published program samples with euler, not {model.chosen_solver.type}",
        )
    for group in trained.assets.pose_groups:
        reference = reference_keys(group)
        without = PoseGroup(group.name, group.position_key, group.rotation_key)
        if group.reference_position and reference != reference_keys(without):
            reporter.warn(
                "export.reference_pose",
                f"the published program takes the reference of the pose {group.name!r} from "
                f"{reference_keys(without)[0]}, but this policy from {reference[0]}",
            )
            break


def _write(
    trained: published.Trained,
    tree: Mapping[str, Any],
    states: "Mapping[str, Mapping[str, Tensor]]",
    folder: Path,
) -> Mapping[str, Any]:
    """Writes an experiment; `states`: weights by the names of their files."""
    from vlatool.models.diffusion_policy.weights import write_published, write_published_average

    assert trained.origin.checkpoint is not None
    assert trained.folder is not None
    run = RunDir(trained.folder)
    config = _published_config(tree, trained.config.model, trained.assets)
    layout.write_configs(folder, config, _own_keys(trained.config))
    layout.write_metadata(
        folder, tree["data"]["dataset_manifest"], read_preprocessing_config(run.root)
    )
    for path in (run.stats, run.options, run.root / TOKENIZER, run.root / CONTRACT.name):
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
    step = CheckpointManifest.read(trained.origin.checkpoint).step
    number = layout.EXPORT_NUMBER
    write_published(folder / layout.WEIGHTS, states[layout.WEIGHTS], number, step)
    has_average = layout.AVERAGE in states
    if has_average:
        write_published_average(folder / layout.AVERAGE, states[layout.AVERAGE], number, step)
    return {"averaged": has_average}


def _published_config(
    tree: Mapping[str, Any], model: DiffusionPolicyConfig, assets: RoboticsAssets
) -> dict[str, Any]:
    """The configuration of a run with the keys of the published program."""
    config, _ = split_keys(tree)
    config["model"] = _without_init(config["model"])
    data = config["data"]
    manifests = data["dataset_manifest"]
    data["dataset_modality"] = ["robotics"] * len(manifests)
    if not data["dataset_statistics"]:
        data["dataset_statistics"] = [layout.statistics_beside(path) for path in manifests]
    if not data["dataset_weighting"]:
        data["dataset_weighting"] = [1.0] * len(manifests)
    if not data["processor"]:
        data["processor"] = getattr(model.vision_language_backbone, "hf_pretrained", None)
    data["pose_groups"] = []
    for group in assets.pose_groups:
        keys = ("name", "position_key", "rotation_key")
        data["pose_groups"].append({key: getattr(group, key) for key in keys})
    hparams = config["hparams"]
    hparams["loss_function"] = "mse"
    hparams.setdefault("per_gpu_batch_size", hparams["global_batch_size"])
    config["distributed"]["dist_backend"] = "nccl"
    if tree.get("total_train_steps"):
        config["total_train_samples"] = tree["total_train_steps"] * hparams["global_batch_size"]
    return config


def _without_init(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section, and those below it, without initial weights."""
    plain: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            value = _without_init(value)
        plain[key] = _NO_INIT.get(key, value)
    return plain


def _own_keys(config: TrainedConfig) -> dict[str, Any]:
    """Keys of the sections `model` and `data` that are not published and not default."""
    sections = {"model", "data"}
    _, own = split_keys(config.model_dump(mode="json", include=sections))
    return _common(own, config.model_dump(mode="json", include=sections, exclude_defaults=True))


def _common(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a tree that another tree has too."""
    common: dict[str, Any] = {}
    for key, value in tree.items():
        if key in other:
            common[key] = _common(value, other[key]) if isinstance(value, Mapping) else value
    return common
