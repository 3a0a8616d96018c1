"""Opens trained weights of any kind: runs, checkpoints, published folders and files.

`open_trained` gives networks with their weights, configuration and assets; `WeightsOrigin.find`
only finds the files.

Locations are local or remote; remote files are copied to the cache. Files of a checkpoint or an
export are compared with their listed digests only when they are read. Does not import torch.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict, Field, SerializeAsAny, ValidationError, create_model

from vlatool.checkpoints import locations
from vlatool.checkpoints.checkpoint import CheckpointManifest, part_weights
from vlatool.checkpoints.layout import RunDir
from vlatool.config.base import ConfigModel, option
from vlatool.config.resolve import load_config
from vlatool.config.schema import underived
from vlatool.errors import ConfigError, DataError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.loading.base import DataKind, LoadingConfig, data_kind
from vlatool.models.base import ModelType, Part
from vlatool.models.published import (
    PublishedFiles,
    Trained,
    Weights,
    WeightsOrigin,
    registered_type,
)
from vlatool.plugins import TRANSLATIONS, Registry
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import pinned

if TYPE_CHECKING:
    from torch import Tensor, device, nn


# Virtual key that `--data DIR` sets; each data kind maps it to one of its own keys.
FOLDERS = "folders"

_MODEL = "model"


class LoraOptions(ConfigModel):
    """Adapters of low rank that are trained instead of the layers beside which they are."""

    typed_form: ClassVar[str] = "RANK"

    rank: int = option(0, "Rank of the adapters; 0: none, all weights are trained.", ge=0, le=4096)
    alpha: float | None = option(None, "Scale of the adapters, times their rank; null: rank.", gt=0)
    targets: str | None = option(
        None, "Pattern of the names of linear layers; null: the layers that the model type names."
    )
    dropout: float = option(0.0, "Share of inputs of the adapters that training drops.", ge=0, lt=1)

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> dict[str, Any]:
        return {"rank": texts[-1]}

    @property
    def scale(self) -> float:
        """The scale, times the rank."""
        return float(self.rank if self.alpha is None else self.alpha)


def with_adapters(
    model_type: ModelType, parts: "Mapping[str, Part]", options: LoraOptions
) -> "Mapping[str, Part]":
    """The parts, with adapters in the part `model` if there are any."""
    if options.rank:
        from vlatool.models.adapters import add_adapters

        network = parts[_MODEL].module
        targets = options.targets or model_type.adapter_targets(network)
        add_adapters(network, options.rank, options.scale, targets, options.dropout)
    return parts


class TrainedConfig(ConfigModel):
    """Sections of a run that describe its weights; other keys of its config.yaml are ignored."""

    model_config = ConfigDict(extra="ignore")

    translations: ClassVar[Registry[Any] | None] = TRANSLATIONS

    data: SerializeAsAny[LoadingConfig] = option(LoadingConfig(), "Training data.")
    model: SerializeAsAny[ConfigModel] = option(ConfigModel(), "Model.")
    lora: LoraOptions = option(LoraOptions(), "Adapters.")

    @classmethod
    def specialize(cls, tree: Mapping[str, Any]) -> type[Self]:
        """Subclass whose sections have the config classes of the chosen types."""
        return with_types(cls, tree)


def with_weights(trained: Trained, weights: Weights) -> Trained:
    """The same checkpoint with other weights, on the CPU."""
    location = str(trained.origin.checkpoint or trained.origin.text)
    return open_trained(location, weights=weights, device="cpu")


def open_trained(
    location: str,  # location of any scheme
    *,
    weights: Weights = "auto",  # `ema`, `raw`, or `auto`: averaged weights if there are any
    # device of the networks; None: the GPU if there is one, else the CPU
    device: "device | str | None" = None,
    changes: Mapping[str, Any] | None = None,  # keys of the section `model` to change
    before: ConfigModel | None = None,
    reporter: Reporter = NULL,
) -> Trained:
    """Opens trained weights; `WeightsOrigin.find` describes the locations."""
    import torch

    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not location:
        raise UsageError(
            "you have not given a checkpoint",
            hint="give the run of `vlatool train`, such as runs/first",
            code="usage.missing_key",
        )
    origin = WeightsOrigin.find(location, weights)
    if origin.published is None:
        opened = _open_run(origin, changes or {})
    else:
        opened = _open_published(origin, origin.published, changes or {}, before, reporter)
        if origin.weights == "raw" and weights == "auto" and pinned(location) != origin.file:
            reporter.note(f"{location}: has no averaged weights, so the raw weights are used")
    parts = {name: module.to(device).eval() for name, module in opened.parts.items()}
    return replace(opened, parts=parts)


def _open_published(
    origin: WeightsOrigin,
    published: tuple[ModelType, PublishedFiles],
    changes: Mapping[str, Any],
    before: ConfigModel | None,
    reporter: Reporter,
) -> Trained:
    """Opens published files, on the CPU."""
    model_type, files = published
    origin = replace(origin, opened=files.checked(origin.file, origin.path))
    files = replace(files, weights=origin.file, before=before)
    with as_config_error(origin):
        model = model_type.layout.open(files, origin.path)
        sections = {"model": _changed(model.config, changes)}
        if model.data is not None:
            sections["data"] = model.data
        config = TrainedConfig(**sections)
    for note in model.notes:
        reporter.note(note)
    return Trained(config, model.parts, model.assets, origin, model.folder)


def _open_run(origin: WeightsOrigin, changes: Mapping[str, Any]) -> Trained:
    """Opens a checkpoint of a run, on the CPU."""
    import torch

    from vlatool.models.adapters import merged_weights
    from vlatool.models.weights import check_shapes, matching_state_dict, read_weights

    if origin.run is None or origin.checkpoint is None:
        raise DataError.at(
            origin.text,
            "holds no weights of a known model type",
            hint="give a run, a checkpoint, or a published folder or file",
            code="data.missing",
        )
    recorded_files = origin.run.recorded_files()
    run, checkpoint = locations.local_run(
        origin.run, origin.checkpoint, FileCache(default_cache_folder())
    )
    with as_config_error(origin):
        config = read_config(run)
        model = _changed(config.model, changes)
    if unset := underived(model):
        raise _unusable(origin, f"model.{unset[0]} is not set")
    assets = data_kind_of(config).load_assets(config.data, run.root)
    run.check_assets(recorded_files)

    model_type = model_type_of(model)
    manifest = CheckpointManifest.read(checkpoint)
    files: dict[str, Path] = {}
    with torch.device("meta"):  # sizes are compared before they take memory
        planned = model_type.build_for_inference(model)
    for name in planned:
        averaged = part_weights(name, averaged=True)
        uses_average = origin.weights == "ema" and averaged in manifest.files
        file = averaged if uses_average else part_weights(name)
        manifest.check(checkpoint, [file])
        files[name] = checkpoint / file
    lora = config.lora

    def weights_of(name: str) -> "dict[str, Tensor]":
        weights = read_weights(files[name])
        return merged_weights(weights, lora.rank, lora.scale) if lora.rank else weights

    for name, part in planned.items():
        check_shapes(part.module, weights_of(name), files[name])
    modules: dict[str, nn.Module] = {}
    for name, part in model_type.build_for_inference(model).items():
        weights = matching_state_dict(part.module, weights_of(name), files[name])
        part.module.load_state_dict(weights, strict=False)
        modules[name] = part.module
    origin = replace(origin, opened=checkpoint / origin.file.name)
    config = config.model_copy(update={"model": model})
    return Trained(config, modules, assets, origin, run.root)


def read_config(run: RunDir) -> TrainedConfig:
    """The sections `model` and `data` of a run."""
    run.config_tree()  # an empty file would be all defaults
    return load_config(TrainedConfig, files=[str(run.config)]).config


def _changed(model: Any, changes: Mapping[str, Any]) -> Any:
    """The section with changed keys; keys that it does not have are ignored."""
    fields = type(model).model_fields
    update = {key: value for key, value in changes.items() if key in fields}
    return model.model_copy(update=update)


def section_of(location: str) -> tuple[ConfigModel, Path] | None:
    """Section `model` and folder of some weights; None if there is no section."""
    with suppress(DataError, ConfigError, UsageError):
        origin = WeightsOrigin.find(location)
        if origin.run is not None:
            return read_config(origin.run).model, origin.run.root
        if origin.published is not None:
            model_type, files = origin.published
            section = model_type.layout.section(files)
            return section and (section, origin.file.parent)
    return None


@contextmanager
def as_config_error(origin: WeightsOrigin) -> Generator[None]:
    """Reports validation errors in its body as errors in the configuration of the weights."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"]
        if first["loc"]:
            reason = f"{'.'.join(map(str, first['loc']))}: {reason}"
        raise _unusable(origin, reason) from None
    except ConfigError as error:
        raise _unusable(origin, error.message) from None


def _unusable(origin: WeightsOrigin, reason: str) -> DataError:
    return DataError.at(
        origin.text,
        f"invalid configuration: {reason}",
        hint="copy the weights again from their origin, with their configuration",
        code="data.broken",
    )


def with_types(schema: Any, tree: Mapping[str, Any]) -> Any:
    """Subclass of a configuration with the config classes of the types that its sections name.

    The model type is chosen by `model.type`, the data kind by `data.type`.
    """
    fields: dict[str, Any] = {}
    kinds: Sequence[str] = ()
    name = _type_of(tree.get(_MODEL))
    if name is not None:
        model_type = registered_type(name)
        kinds = model_type.kinds
        fields[_MODEL] = (model_type.Config, Field(description="Model to train."))
    kind = data_kind(_type_of(tree.get("data")), kinds)
    fields["data"] = (kind.Config, option(kind.Config(), "Training data."))
    special: Any = create_model(schema.__name__, __base__=schema, **fields)
    keys = tuple(f"data.{key}" for key in kind.folders_keys)
    special.NAMES = {**special.NAMES, f"data.{FOLDERS}": keys}
    return special


def model_type_of(model: ConfigModel) -> ModelType:
    """The model type of a section `model`."""
    return registered_type(getattr(model, "type", ""))


def data_kind_of(config: Any) -> DataKind:
    """The data kind that `data.type` names; by default the first kind of the model type."""
    return data_kind(config.data.type, model_type_of(config.model).kinds)


def _type_of(section: object) -> str | None:
    name = section.get("type") if isinstance(section, Mapping) else None
    return str(name) if name else None
