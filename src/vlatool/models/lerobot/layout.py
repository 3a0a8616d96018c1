"""Checkpoints of lerobot: a folder with config.json, model.safetensors and two processors."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.datasets.base_model import CONFIG, WEIGHTS
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.mixture import assets_of
from vlatool.models.lerobot import package
from vlatool.models.lerobot.config import ACTION, LeRobotPolicyConfig, kind_of
from vlatool.models.published import Exported, Layout, PublishedFiles, PublishedModel
from vlatool.storage.atomic import atomic_path, write_bytes, write_json, write_text
from vlatool.storage.cache import local_copy
from vlatool.storage.documents import read_json

if TYPE_CHECKING:
    from vlatool.events import Reporter
    from vlatool.models.published import Trained


class LeRobotLayout(Layout):
    """Lets every command take a folder of lerobot in place of a run, and writes such folders."""

    implies_type: ClassVar[bool] = True

    def recognize(self, location: Path) -> PublishedFiles | None:
        folder = location.parent if location.name == WEIGHTS else location
        config = folder / CONFIG
        if not config.is_file():
            return None
        try:
            tree = read_json(config)
        except (OSError, ValueError):
            return None
        if not isinstance(tree, dict) or not {"type", "input_features"} <= tree.keys():
            return None
        return PublishedFiles(folder / WEIGHTS, config)

    def section(self, files: PublishedFiles) -> LeRobotPolicyConfig:
        assert files.config is not None
        tree = dict(read_json(files.config))
        return LeRobotPolicyConfig(policy=str(tree.pop("type")), config=tree)

    def open(self, files: PublishedFiles, path: Path) -> PublishedModel:
        from vlatool.models.weights import build_with, read_weights

        assert files.config is not None
        remote = files.weights.parent
        if not path.is_file():
            hint = (
                "vlatool reads no pickles, which can run code: save the policy again with a newer "
                "lerobot, whose save_pretrained writes safetensors"
            )
            if (remote / "adapter_config.json").is_file():
                hint = "it has adapters alone: merge them with merge_and_unload of peft"
            raise DataError.at(remote, f"has no {WEIGHTS}", hint=hint, code="data.missing")
        folder = self._with_processors(remote)
        section = self.section(files)
        settings = package.policy_config(section)
        cameras: dict[str, str] = {}
        shapes: dict[str, list[int]] = {}
        fields: dict[str, list[str]] = {}
        for name, feature in {**settings.input_features, **settings.output_features}.items():
            if kind_of(name) == "VISUAL":
                cameras[name] = name  # as recordings of lerobot have them
            else:
                fields[name] = [name]
            shapes[name] = list(feature.shape)
        section = section.model_copy(
            update={"cameras": cameras, "fields": fields, "shapes": shapes}
        )
        weights = read_weights(path)
        new_policy = partial(package.new_policy, section)
        policy = build_with(new_policy, lambda _: weights, files.weights)
        data = self._data(section, settings)
        statistics = self._statistics(section, folder)
        size = next((shapes[name][1:] for name in cameras.values()), None)
        assets = assets_of(data, statistics, 0, {"image_size": size, "pose_groups": []})
        notes = ["the checkpoint does not say its frames per second: give the rate of your robot"]
        steps = getattr(settings, "n_action_steps", None)
        if steps is not None:
            notes.append(f"lerobot executes {steps} steps of a chunk: execute_steps {steps}")
        return PublishedModel(section, {"model": policy}, assets, data, folder, notes)

    def _with_processors(self, folder: Path) -> Path:
        """Local folder with both processors and the files that they name."""
        names = [name for name in package.PROCESSORS if (folder / name).is_file()]
        if len(names) < len(package.PROCESSORS):
            raise DataError.at(
                folder,
                f"has no {' and '.join(package.PROCESSORS)}, so its actions have no units",
                hint="copy the whole folder; convert a checkpoint of lerobot before 0.4 with its "
                "migrate_policy_normalization",
                code="data.missing",
            )
        for name in package.PROCESSORS:
            for step in package.checked_steps(folder / name):
                if step.get("state_file"):
                    names.append(step["state_file"])
        return local_copy(folder, names)

    def _data(self, section: LeRobotPolicyConfig, settings: Any) -> RoboticsDataConfig:
        """The section `data` that a run with this policy would have."""
        observed, actions = package.steps_of(settings)
        inputs = [name for name in section.fields if name != ACTION]
        steps = {
            "lowdim_past_timesteps": max(0, -min([*observed, *actions])),
            "lowdim_future_timesteps": max(actions),
        }
        shapes = section.shapes or {}
        return RoboticsDataConfig.model_validate(
            {
                "camera_names": list(section.cameras) or ["none"],
                "image_indices": observed,
                "proprioception_fields": inputs,
                "action_fields": [ACTION],
                "proprioception_dim": sum(shapes[name][0] for name in inputs),
                "action_dim": shapes[ACTION][0],
                "normalization": {"enabled": False, "include_fields": [*inputs, ACTION], **steps},
                "augmentation": {"enabled": False},
                **steps,
            }
        )

    def _statistics(self, section: LeRobotPolicyConfig, folder: Path) -> dict[str, dict[str, Any]]:
        """What the normalizers of the processors store; a mean of 0 where they store none."""
        from vlatool.models.weights import read_weights

        shapes = section.shapes or {}
        found: dict[str, dict[str, Any]] = {}
        for name in section.fields:
            found[name] = {"mean": [0.0] * shapes[name][0], "std": [1.0] * shapes[name][0]}
        for processor in package.PROCESSORS:
            for step in package.checked_steps(folder / processor):
                if not step.get("state_file") or "normalizer" not in step["registry_name"]:
                    continue
                for key, value in read_weights(folder / step["state_file"]).items():
                    feature, _, statistic = key.rpartition(".")
                    if feature in found and list(value.shape) == shapes[feature]:
                        found[feature][statistic] = value.double().tolist()
        return found

    def write(self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter") -> Exported:
        """The files that `PreTrainedPolicy.from_pretrained` of lerobot opens."""
        from safetensors.torch import save, save_model

        from vlatool.models.lerobot.batch import feature_statistics

        section: Any = trained.config.model
        policy: Any = trained.parts["model"]
        settings = package.policy_config(section)
        statistics = feature_statistics(
            section, settings, trained.assets.data, trained.assets.statistics
        )
        seen, commanded = statistics.seen, statistics.commanded
        processors = package.new_processors(section, seen, commanded, "cpu")
        documents: dict[str, Any] = {}
        states: dict[str, Any] = {}
        for pipeline, name in zip(processors, package.PROCESSORS, strict=True):
            documents[name] = pipeline.get_config()
            for key, tensors in pipeline.state_dict().items():
                states[f"{key}.safetensors"] = tensors
        names = (CONFIG, WEIGHTS, *documents, *states)

        def write(output: Path) -> dict[str, Any]:
            write_text(output / CONFIG, package.encode_config(settings))
            with atomic_path(output / WEIGHTS) as path:
                save_model(policy, str(path))
            for name, document in documents.items():
                write_json(output / name, document)
            for name, tensors in states.items():
                write_bytes(output / name, save(tensors))
            return {"policy": section.policy}

        count = sum(parameter.numel() for parameter in policy.parameters())
        summary = f"checkpoint of lerobot, policy {section.policy}"
        # The fields of the run are side by side there, under other names.
        return Exported(names, (WEIGHTS,), count, summary, write, compared=())
