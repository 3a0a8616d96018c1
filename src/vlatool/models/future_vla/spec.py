"""The model type `future_vla`; no torch. Source: reference/future-vla-model 2."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel, Violation, derivation_rules
from vlatool.errors import DataError, UsageError
from vlatool.models.base import ModelType, Objective, Part
from vlatool.models.future_vla import published
from vlatool.models.future_vla.config import FutureVlaConfig, LoraConfig
from vlatool.models.published import Exported, Layout, PublishedFiles, PublishedModel, WeightsOrigin
from vlatool.models.trained import read_config
from vlatool.storage.atomic import write_bytes
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.cache import local_copy
from vlatool.storage.tree import file_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlatool.events import Reporter
    from vlatool.loading.vla.config import VlaAssets
    from vlatool.models.future_vla.batch import VlaBatcher
    from vlatool.models.future_vla.policy import FutureVlaPolicy
    from vlatool.models.published import Trained


class QwenLayout(Layout):
    """Folders in the layout of Qwen3-VL, composed or exported."""

    def write(self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter") -> Exported:
        from vlatool.models.future_vla.weights import prepare_export

        return prepare_export(trained)

    def recognize(self, location: Path) -> PublishedFiles | None:
        """The files of a composed or exported folder, or of a plain Qwen3-VL."""
        return published.find_published(location)

    def section(self, files: PublishedFiles) -> FutureVlaConfig:
        return published.read_section(files.weights.parent)

    def open(self, files: PublishedFiles, path: Path) -> PublishedModel:
        import torch

        from vlatool.loading.vla.kind import VlaKind
        from vlatool.models.future_vla.model import build_network
        from vlatool.models.future_vla.weights import load_stored

        folder = files.weights.parent
        config = self.section(files)
        with torch.device("meta"):
            network = build_network(config)
        load_stored(network.to_empty(device="cpu"), folder)
        data = published.read_data(folder)
        assets = None if data is None else VlaKind().load_assets(data, folder)
        local = local_copy(
            folder, [name for name in published.ASSETS if name in file_names(folder)]
        )
        return PublishedModel(config, {"model": network}, assets, data, local)


class FutureVlaType(ModelType):
    name: ClassVar[str] = "future_vla"
    Config: ClassVar[type[ConfigModel]] = FutureVlaConfig
    kinds: ClassVar[tuple[str, ...]] = ("vla",)
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("answer_losses",)}
    needs_init: ClassVar[bool] = True
    layout: ClassVar[Layout] = QwenLayout()

    def check_init(self, config: FutureVlaConfig, init_from: str | None) -> None:
        if init_from is None:
            if None in (config.qwen, config.dino, config.special_ids):
                raise UsageError(
                    "a future_vla model needs initial weights: init_from is not set",
                    hint="make them with `vlatool compose --qwen DIR --dino DIR --output "
                    "DIR`, or `vlatool compose --tiny --output DIR`, then --init-from "
                    "DIR; to plan the published sizes: --preset future-vla-4b --dry-run",
                    code="usage.missing_key",
                    details={"key": "init_from"},
                )
            return
        origin = WeightsOrigin.find(init_from)
        origin.check_type(self.name, "data.checkpoint_mismatch")
        if origin.run is None:
            self.layout.section(self._published_files(origin))
        else:
            read_config(origin.run)

    def restore_base_config(self, config: FutureVlaConfig, before: Any) -> FutureVlaConfig:
        """The config, with the architecture of the weights, and with their grid if none is set."""
        if not isinstance(before, FutureVlaConfig):
            return config
        update = {
            name: getattr(before, name)
            for name in published.FROM_WEIGHTS
            if getattr(config, name) is None or name not in config.model_fields_set
        }
        return config.model_copy(update=update)

    def derive(
        self, config: FutureVlaConfig, data: Any, info: Any
    ) -> tuple[FutureVlaConfig, dict[str, str]]:
        """Fills in the map to token ids, and checks that the data fit the weights."""
        from vlatool.models.future_vla.fit import fit_to_data

        architecture = derivation_rules(config, ("qwen", "dino", "special_ids"))
        fitted, rules = fit_to_data(config, data)
        return fitted, architecture | rules

    def check_data(self, config: FutureVlaConfig, data: Any, info: Any, folder: Path) -> None:
        from vlatool.models.future_vla.fit import check_texts, encoder_of

        check_texts(encoder_of(config, data.shape, folder), info, config.length_limit)

    def batcher(
        self,
        config: FutureVlaConfig,
        data: Any,
        assets: Any,
        folder: Path | None,
        *,
        training: bool,
    ) -> "VlaBatcher":
        from vlatool.models.future_vla.batch import VlaBatcher
        from vlatool.models.future_vla.fit import encoder_of

        return VlaBatcher(encoder_of(config, data.shape, folder), config.length_limit)

    def example(self, config: FutureVlaConfig, data: Any, size: int) -> dict[str, Any]:
        from vlatool.models.future_vla.batch import example_batch
        from vlatool.models.future_vla.fit import grid_of

        assert config.tokens is not None
        return example_batch(
            config.tokens, grid_of(config, data.shape).token_sides, data.shape, size
        )

    def flops(self, config: FutureVlaConfig, data: Any) -> float | None:
        """Operations of the network, and of the head at labelled positions."""
        from vlatool.models.flops import sample_flops
        from vlatool.models.future_vla.batch import NO_LABEL

        labels = self.example(config, data, 1)["labels"]
        count = int((labels[:, 1:] != NO_LABEL).sum())

        def losses(parts: Mapping[str, Part], batch: Mapping[str, Any]) -> "Iterator[Tensor]":
            network: Any = parts["model"].module
            hidden = network(batch["input_ids"], batch["position_ids"], images=batch["images"])
            yield network.head(hidden[0, :count]).sum()

        return sample_flops(self, config, data, losses)

    def build(self, config: FutureVlaConfig) -> Mapping[str, Part]:
        from vlatool.models.future_vla.model import build_network

        network = build_network(config)
        return {"model": Part(network, blocks=network.blocks())}

    def load_init(
        self,
        config: FutureVlaConfig,
        parts: Mapping[str, Part],
        init: WeightsOrigin,
        init_except: Sequence[str],
    ) -> Sequence[str] | None:
        """Loads the weights of a run, or of a composed or exported folder.

        If the config has adapters of the same rank and scale as the run, their training continues.
        Otherwise the adapters of the run are merged into the weights, and new ones start from zero.
        """
        from vlatool.models.adapters import adapter_names, merged_weights
        from vlatool.models.future_vla.weights import load_stored
        from vlatool.models.weights import init_state_dict

        module = parts["model"].module
        before = LoraConfig.model_validate((init.section or {}).get("lora", {}))
        if before.rank and before == config.lora:
            return super().load_init(config, parts, init, init_except)
        excluded = [*init_except, *adapter_names(module)]
        if before.rank:
            init.check_type(self.name, "data.checkpoint_mismatch")
            merged = merged_weights(init.read(), before.rank, before.alpha)
            module.load_state_dict(
                init_state_dict(module, merged, init.file, excluded), strict=False
            )
            return (f"adapters of {init.text} were merged into its weights",)
        if init.run is not None:
            return super().load_init(config, parts, init, excluded)
        files = self._published_files(init)
        files.checked(files.weights, init.path)
        load_stored(module, files.weights.parent, excluded)
        return ()

    def save_assets(
        self,
        config: FutureVlaConfig,
        folder: Path,
        before: Any = None,
        source: Path | None = None,
    ) -> None:
        if isinstance(before, FutureVlaConfig) and source is not None:
            present = file_names(source)
            for name in published.ASSETS:
                if name in present:
                    write_bytes(folder / name, read_file(source / name))

    def _published_files(self, origin: WeightsOrigin) -> PublishedFiles:
        files = self.layout.recognize(origin.file)
        if files is None:
            raise DataError.at(
                origin.text,
                f"has no weights of model type {self.name}",
                hint="give a run, or a folder of `vlatool compose` or `vlatool export`",
                code="data.checkpoint_mismatch",
            )
        return files

    def violations(self, config: FutureVlaConfig, data: Any) -> Iterator[Violation]:
        keys = ("freeze_dino", "freeze_vision", "freeze_mergers", "freeze_language")
        if all(getattr(config, key) for key in keys) and not config.lora.rank:
            names = tuple(f"model.{key}" for key in keys)
            yield Violation(names, "all parts of the model are frozen, so nothing would be trained")
        if config.freeze_layers and config.lora.rank:
            names = ("model.freeze_layers", "model.lora.rank")
            yield Violation(names, "adapters in all layers are trained instead of the layers")

    def objective(
        self, config: FutureVlaConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        from vlatool.models.future_vla.model import AnswerObjective

        return AnswerObjective(config)

    def policy(
        self,
        config: FutureVlaConfig,
        parts: Mapping[str, "nn.Module"],
        assets: "VlaAssets | None",
        folder: Path | None,
    ) -> "FutureVlaPolicy":
        from vlatool.models.future_vla.fit import encoder_of
        from vlatool.models.future_vla.policy import FutureVlaPolicy

        if assets is None or folder is None or config.tokens is None:
            raise DataError(
                "these weights do not say what their tokens for actions and codes mean",
                hint="give a run of `vlatool train` that started from them",
                code="data.missing",
            )
        network: Any = parts["model"]
        return FutureVlaPolicy(network, encoder_of(config, assets.shape, folder), assets)
