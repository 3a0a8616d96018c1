"""Weights of FUTURE-VLA in files of safetensors, and export in the published layout.

Memory holds one tensor of a file at a time. Names in the state dict are those of the files. Source:
formats/future-vla.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlatool.errors import BugError, DataError
from vlatool.formats.base_model import CONFIG, weight_files
from vlatool.formats.contract import CONTRACT
from vlatool.formats.fast.layout import NAMES as FAST_NAMES
from vlatool.formats.fast.layout import write_fast
from vlatool.formats.samples.layout import FAST_NAME
from vlatool.formats.samples.profile import NAME as PROFILE_NAME
from vlatool.formats.samples.profile import write_profile
from vlatool.loading.vla.config import VlaAssets
from vlatool.models.future_vla import published
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.model import merged_weights
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
    """Tensors of a folder, which are read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = weight_files(folder)
        if any(not name.endswith((_SUFFIX, published.INDEX)) for name in names):
            raise unusable_checkpoint(folder, f"it has no {_SUFFIX} files")
        local = local_copy(folder, names)
        indexed = (
            weight_map(local / published.INDEX).values() if published.INDEX in names else names
        )
        # local files; copies in the cache if the folder is remote
        self.paths = [local / name for name in sorted(set(indexed))]
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
                hint="use other weights: the outputs of these would not be finite",
                code="data.not_finite",
            )
        return value


@torch.no_grad()
def load_stored(module: nn.Module, folder: Path, excluded: Sequence[str] = ()) -> None:
    """Copies the tensors of a folder into a network; all names and shapes must match."""
    stored = StoredTensors(folder)
    state = module.state_dict()
    prefixes = tuple(f"{name}." for name in excluded)
    own = {name for name in state if name.startswith(prefixes)} if prefixes else set[str]()
    shapes = {name: torch.empty(shape, device="meta") for name, shape in stored.shapes.items()}
    shapes = {name: value for name, value in shapes.items() if name not in own}
    matching_shapes(module, {**shapes, **{name: state[name] for name in own}}, folder)
    for name in shapes:
        state[name].copy_(stored.read(name))


def write_tensors(
    folder: Path,  # existing folder
    shapes: Mapping[str, Sequence[int]],  # shape of each tensor, in the order in the files
    read: Callable[[str], Tensor],  # returns the tensor of a name, of any type and device
    dtype: torch.dtype,  # type in the files, bfloat16 or float32
) -> list[str]:
    """Writes weights as safetensors files with an index, as the hub has them; returns names of the
    files.
    """
    groups = list(_groups(shapes, dtype.itemsize))
    names = file_names(shapes, dtype)
    for name, tensors in zip(names, groups, strict=False):
        with open_atomic(folder / name) as file:
            _write_file(file, {key: shapes[key] for key in tensors}, read, dtype)
    files = zip(names, groups, strict=False)
    index = {key: name for name, tensors in files for key in tensors}
    size = dtype.itemsize * sum(_count(shape) for shape in shapes.values())
    write_json(folder / published.INDEX, {"metadata": {"total_size": size}, "weight_map": index})
    return names


def file_names(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> list[str]:
    """Names of the files that `write_tensors` writes."""
    count = sum(1 for _ in _groups(shapes, dtype.itemsize))
    files = [f"model-{n + 1:05d}-of-{count:05d}{_SUFFIX}" for n in range(count)]
    return [*files, published.INDEX]


def _groups(shapes: Mapping[str, Sequence[int]], itemsize: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, shape in shapes.items():
        added = itemsize * _count(shape)
        if group and size + added > _MAX_FILE:
            yield group
            group = []
            size = 0
        group.append(name)
        size += added
    yield group


def _write_file(
    file: IO[bytes],
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + dtype.itemsize * _count(shape)
        header[name] = {"dtype": _TYPES[dtype], "shape": [*shape], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in shapes:
        value = read(name).detach().to("cpu", dtype).contiguous()
        file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


# Names of layers that newer versions of transformers write.
_NEW_LAYER = re.compile(r"^(?:model\.)+layer\.")


def dino_name(name: str) -> str:
    """Name of a tensor of DINOv3 as published, from that in a file of any version."""
    return _NEW_LAYER.sub("layer.", name)


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
        return [name for name in published.ASSETS if name in present]

    @property
    def asset_files(self) -> list[str]:
        if self.assets is None:
            return []
        names = [PROFILE_NAME, *(FAST_NAMES if self.assets.fast is not None else ())]
        return [CONTRACT.name, *(f"{FAST_NAME}/{name}" for name in names)]

    def write(self, folder: Path) -> Mapping[str, Any]:
        """Writes the folder; the manifest last."""
        for name in self.stock_files:
            assert self.folder is not None
            write_bytes(folder / name, read_file(self.folder / name))
        if self.assets is not None:
            write_profile(folder / FAST_NAME / PROFILE_NAME, self.assets.profile)
            if self.assets.fast is not None:
                write_fast(folder / FAST_NAME, self.assets.fast)
            CONTRACT.write(folder, asdict(self.assets.contract))
        write_text(folder / CONFIG, json.dumps(published.config_json(self.config), indent=2))
        write_tensors(folder, self.shapes, self.tensors.__getitem__, DTYPE)
        written = StoredTensors(folder)
        for name, value in self.tensors.items():
            if not torch.equal(written.read(name), value.detach().to("cpu", DTYPE)):
                raise BugError(
                    f"{folder}: {name} differs from the tensor that was written",
                    hint="do not use the folder; check the disk",
                    code="bug.differs",
                )
        model = self.config.model_dump(mode="json", exclude={"qwen", "special_ids"})
        published.MANIFEST.write(folder, {"model": model, "data": self.data})
        return {"tensors": len(self.tensors)}


def prepare_export(trained: Trained) -> Exported:
    config = trained.config.model
    network = trained.parts["model"]
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
        files=(*weights, *export.stock_files, *export.asset_files, CONFIG, published.MANIFEST_NAME),
        weights=tuple(name for name in weights if name != published.INDEX),
        compared=(published.INDEX,) if has_policy else (),
        parameters=sum(value.numel() for value in export.tensors.values()),
        summary=f"{len(export.tensors)} tensors in float32 with {published.MANIFEST_NAME}",
        write=export.write,
    )
