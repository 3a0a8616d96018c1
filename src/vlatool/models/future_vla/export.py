"""Export of a trained FUTURE-VLA in its published layout. Source: formats/future-vla."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.artifacts.base_model import CONFIG
from vlatool.artifacts.fast.format import NAMES as FAST_NAMES
from vlatool.artifacts.fast.format import write_fast
from vlatool.artifacts.profile import NAME as PROFILE_NAME
from vlatool.artifacts.profile import write_profile
from vlatool.artifacts.samples.format import FAST_NAME
from vlatool.errors import BugError
from vlatool.loading.vla.config import VlaAssets
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.lora import merged_weights
from vlatool.models.future_vla.published import ASSETS, INDEX, MANIFEST, MANIFEST_NAME, config_json
from vlatool.models.future_vla.weights import StoredTensors, file_names, write_tensors
from vlatool.models.published import Exported
from vlatool.models.trained import Trained
from vlatool.storage.atomic import write_bytes, write_text
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import file_names as names_in

# Weights are trained and averaged in float32; another type would give other outputs.
DTYPE = torch.float32


@dataclass(frozen=True)
class _Export:
    """Content of an exported folder."""

    config: FutureVlaConfig
    data: dict[str, Any]
    assets: VlaAssets | None
    tensors: Mapping[str, Tensor]
    folder: Path | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.tensors.items()}

    @property
    def stock_files(self) -> list[str]:
        """Names of the files of Qwen3-VL that the run has."""
        present = frozenset[str]() if self.folder is None else names_in(self.folder)
        return [name for name in ASSETS if name in present]

    @property
    def fast_files(self) -> list[str]:
        if self.assets is None:
            return []
        names = [PROFILE_NAME, *(FAST_NAMES if self.assets.fast is not None else ())]
        return [f"{FAST_NAME}/{name}" for name in names]

    def write(self, folder: Path) -> Mapping[str, Any]:
        """Writes the folder; the manifest last."""
        for name in self.stock_files:
            assert self.folder is not None
            write_bytes(folder / name, read_file(self.folder / name))
        if self.assets is not None:
            write_profile(folder / FAST_NAME / PROFILE_NAME, self.assets.profile)
            if self.assets.fast is not None:
                write_fast(folder / FAST_NAME, self.assets.fast)
        write_text(folder / CONFIG, json.dumps(config_json(self.config), indent=2))
        write_tensors(folder, self.shapes, self.tensors.__getitem__, DTYPE)
        written = StoredTensors(folder)
        for name, value in self.tensors.items():
            if not torch.equal(written.read(name), value.detach().to("cpu", DTYPE)):
                raise BugError(
                    f"{folder}: {name} differs from the tensor that was written",
                    hint="do not use the folder; check the disk",
                    code="bug.weights_differ",
                )
        model = self.config.model_dump(mode="json", exclude={"qwen", "special_ids"})
        MANIFEST.write(folder, {"model": model, "data": self.data})
        return {"tensors": len(self.tensors)}


def prepare_export(trained: Trained) -> Exported:
    """Prepares the folder of opened weights. Writes nothing."""
    config, network = trained.config.model, trained.parts["model"]
    assert isinstance(config, FutureVlaConfig)
    data = trained.config.data
    # Locations of the training data mean nothing where the export is used.
    content = data.model_dump(mode="json", exclude={*data.no_effect_on_output})
    merged = config.model_copy(update={"lora": type(config.lora)()})
    tensors = merged_weights(network.state_dict(), config.lora.rank, config.lora.alpha)
    export = _Export(merged, content, trained.assets, tensors, trained.folder)
    weights = file_names(export.shapes, DTYPE)
    has_policy = trained.assets is not None and trained.assets.fast is not None
    return Exported(
        files=(*weights, *export.stock_files, *export.fast_files, CONFIG, MANIFEST_NAME),
        weights=tuple(name for name in weights if name != INDEX),
        compared=(INDEX,) if has_policy else (),
        parameters=sum(value.numel() for value in export.tensors.values()),
        summary=f"{len(export.tensors)} tensors in float32 with {MANIFEST_NAME}",
        write=export.write,
    )
