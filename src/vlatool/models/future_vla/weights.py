"""Reads weights of FUTURE-VLA from safetensors files, and exports the published layout.

Memory holds one tensor of a file at a time. The state dict has the names of the files. Source:
formats/future-vla.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlatool.checkpoints.contract import CONTRACT
from vlatool.datasets.base_model import CONFIG, weight_files
from vlatool.datasets.fast.layout import NAMES as FAST_NAMES
from vlatool.datasets.fast.layout import write_fast
from vlatool.datasets.samples.layout import FAST_NAME
from vlatool.datasets.samples.profile import NAME as PROFILE_NAME
from vlatool.datasets.samples.profile import write_profile
from vlatool.errors import DataError
from vlatool.loading.vla.config import VlaAssets
from vlatool.models.adapters import merged_weights
from vlatool.models.future_vla import published
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.published import weight_map
from vlatool.models.published import Exported, Trained
from vlatool.models.weights import matching_shapes, unusable_checkpoint
from vlatool.storage.atomic import open_atomic, write_bytes, write_json, write_text
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.cache import local_copy
from vlatool.storage.tree import file_names as names_in

# Largest size of a file, in bytes. One that is larger has a single tensor.
_MAX_FILE = 4 * 2**30
_SUFFIX = ".safetensors"
# Names of types in the header of a file.
_TYPES: Mapping[torch.dtype, str] = {torch.bfloat16: "BF16", torch.float32: "F32"}
_ALIGNMENT = 8


class StoredTensors:
    """Tensors of a folder; each is read when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = weight_files(folder)
        if any(not name.endswith((_SUFFIX, published.INDEX)) for name in names):
            raise unusable_checkpoint(folder, f"it has no {_SUFFIX} files")
        local = local_copy(folder, names)
        if published.INDEX in names:
            names = list(weight_map(local / published.INDEX).values())
        # local files; copies in the cache if the folder is remote
        self.paths = [local / name for name in sorted(set(names))]
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self.paths:
            try:
                file: Any = safe_open(path, framework="pt").__enter__()
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    self._files[name] = file
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())
            except (OSError, SafetensorError) as error:
                raise unusable_checkpoint(path, error) from None

    def read(self, name: str) -> Tensor:
        try:
            value: Tensor = self._files[name].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise unusable_checkpoint(self.folder, error) from None
        if not bool(value.isfinite().all()):
            raise DataError.at(
                self.folder,
                f"values are not finite: {name}",
                hint="use other weights: a model with these computes no finite values",
                code="data.not_finite",
            )
        return value


@torch.no_grad()
def load_stored(module: nn.Module, folder: Path, excluded: Sequence[str] = ()) -> None:
    """Copies the tensors of a folder into a network; all names and shapes must match.

    Args:
        module: The network.
        folder: Folder of weights, of any scheme.
        excluded: Networks in the network that keep their weights.
    """
    stored = StoredTensors(folder)
    state = module.state_dict()
    prefixes = tuple(f"{name}." for name in excluded)
    kept = {name: value for name, value in state.items() if name.startswith(prefixes)}
    loaded: dict[str, Tensor] = {}  # without values
    for name, shape in stored.shapes.items():
        if name not in kept:
            loaded[name] = torch.empty(shape, device="meta")
    matching_shapes(module, {**loaded, **kept}, folder)
    for name in loaded:
        state[name].copy_(stored.read(name))


def write_tensors(
    folder: Path,  # existing folder
    shapes: Mapping[str, Sequence[int]],  # shape of each tensor, in the order in the files
    read: Callable[[str], Tensor],  # returns the tensor of a name, of any type and device
    dtype: torch.dtype,  # type in the files, bfloat16 or float32
) -> None:
    """Writes weights as safetensors files with an index, as the hub has them."""
    files = file_names(shapes, dtype)
    weight_map: dict[str, str] = {}
    for name, group in zip(files, _groups(shapes, dtype.itemsize), strict=False):
        with open_atomic(folder / name) as file:
            _write_file(file, {tensor: shapes[tensor] for tensor in group}, read, dtype)
        weight_map |= dict.fromkeys(group, name)
    size = dtype.itemsize * sum(map(math.prod, shapes.values()))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / published.INDEX, index)


def file_names(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> list[str]:
    """Names of the files that `write_tensors` writes."""
    count = len(_groups(shapes, dtype.itemsize))
    files = [f"model-{number:05d}-of-{count:05d}{_SUFFIX}" for number in range(1, count + 1)]
    return [*files, published.INDEX]


def _groups(shapes: Mapping[str, Sequence[int]], itemsize: int) -> list[list[str]]:
    """Names of the tensors of each file."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        added = itemsize * math.prod(shape)
        if groups[-1] and size + added > _MAX_FILE:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += added
    return groups


def _write_file(
    file: IO[bytes],
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _TYPES[dtype], "shape": [*shape], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in shapes:
        value = read(name).detach().to("cpu", dtype).contiguous()
        file.write(value.reshape(-1).view(torch.uint8).numpy().data)


# Names of layers that newer versions of transformers write.
_NEW_LAYER = re.compile(r"^(?:model\.)+layer\.")


def dino_name(name: str) -> str:
    """Published name of a tensor of DINOv3, from its name in a file of any version."""
    return _NEW_LAYER.sub("layer.", name)


# Weights are trained and averaged in float32; another type would give other outputs.
DTYPE = torch.float32


def prepare_export(trained: Trained) -> Exported:
    """The files of opened weights in the layout of Qwen3-VL; writes nothing yet."""
    config = trained.config.model
    assert isinstance(config, FutureVlaConfig)
    assets: VlaAssets | None = trained.assets
    data = trained.config.data
    # Locations of the training data mean nothing where the export is used.
    section = data.model_dump(mode="json", exclude={*data.no_effect_on_output})
    state = trained.parts["model"].state_dict()
    tensors = merged_weights(state, config.lora.rank, config.lora.alpha)
    config = config.model_copy(update={"lora": type(config.lora)()})
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    present = frozenset[str]() if trained.folder is None else names_in(trained.folder)
    stock_files = [name for name in published.ASSETS if name in present]
    asset_files: list[str] = []
    if assets is not None:
        asset_files += [CONTRACT.name, f"{FAST_NAME}/{PROFILE_NAME}"]
        if assets.fast is not None:
            asset_files += [f"{FAST_NAME}/{name}" for name in FAST_NAMES]

    def write(folder: Path) -> Mapping[str, Any]:
        """Writes the folder; the manifest last."""
        for name in stock_files:
            assert trained.folder is not None
            write_bytes(folder / name, read_file(trained.folder / name))
        if assets is not None:
            write_profile(folder / FAST_NAME / PROFILE_NAME, assets.profile)
            if assets.fast is not None:
                write_fast(folder / FAST_NAME, assets.fast)
            CONTRACT.write(folder, asdict(assets.contract))
        write_text(folder / CONFIG, json.dumps(published.config_json(config), indent=2))
        write_tensors(folder, shapes, tensors.__getitem__, DTYPE)
        model = config.model_dump(mode="json", exclude={"qwen", "special_ids"})
        published.MANIFEST.write(folder, {"model": model, "data": section})
        return {"tensors": len(tensors)}

    weights = file_names(shapes, DTYPE)
    has_policy = assets is not None and assets.fast is not None
    return Exported(
        files=(*weights, *stock_files, *asset_files, CONFIG, published.MANIFEST_NAME),
        weights=tuple(name for name in weights if name != published.INDEX),
        compared=(published.INDEX,) if has_policy else (),
        parameters=sum(value.numel() for value in tensors.values()),
        summary=f"{len(tensors)} tensors in float32 with {published.MANIFEST_NAME}",
        write=write,
    )
