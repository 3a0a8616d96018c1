"""Makes initial weights: Qwen3-VL, DINOv3 and new convolutions, or tiny random ones.

Source: reference/future-vla-model 2.3.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.datasets.base_model import CONFIG, TOKENIZER, read_tokenizer
from vlatool.errors import DataError
from vlatool.events import Progress
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.model import build_network
from vlatool.models.future_vla.published import (
    ASSETS,
    DINO_FAMILY,
    FAMILY,
    FROM_WEIGHTS,
    MANIFEST,
    MANIFEST_NAME,
    config_json,
)
from vlatool.models.future_vla.token_ids import parse_tokenizer, special_ids, tiny_tokenizer
from vlatool.models.future_vla.weights import (
    StoredTensors,
    dino_name,
    file_names,
    write_tensors,
)
from vlatool.models.pretrained import read_architecture
from vlatool.storage.atomic import write_bytes, write_text
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import file_names as names_in
from vlatool.storage.tree import sha256_of

# Type of the files, as published.
DTYPE = torch.bfloat16
_DINO = "model.visual.vis_tok."
_CONVOLUTIONS = tuple(f"model.visual.cnn{number}." for number in (1, 2, 3))
_TIED = "lm_head.weight"
_STD = 0.02
_SHOWN = 3
_TINY_ROWS = 64  # the embedding of the tiny model has a multiple of it


@dataclass(frozen=True)
class Composition:
    """Content of a folder to write."""

    config: FutureVlaConfig  # section `model`
    shapes: Mapping[str, tuple[int, ...]]  # shape of each tensor, in the order of the network
    read: Callable[[str], Tensor]
    tokenizer: str  # content of tokenizer.json, with the markers
    assets: Mapping[str, bytes]  # content of the other files of Qwen3-VL by name
    # local files that the weights come from, by `qwen` or `dino`
    paths: Mapping[str, list[Path]] = field(default_factory=dict[str, list[Path]])

    @property
    def files(self) -> list[str]:
        return [*file_names(self.shapes, DTYPE), TOKENIZER, *self.assets, CONFIG, MANIFEST_NAME]

    @property
    def parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def bytes(self) -> int:
        return DTYPE.itemsize * self.parameters

    def write(self, folder: Path, bar: Progress) -> None:
        """Writes the folder; the manifest last."""
        for name, content in self.assets.items():
            write_bytes(folder / name, content)
        write_text(folder / TOKENIZER, self.tokenizer)

        def read(name: str) -> Tensor:
            bar.advance(1)
            return self.read(name)

        write_tensors(folder, self.shapes, read, DTYPE)
        keys = {*FROM_WEIGHTS} - {"qwen", "special_ids"}
        model = self.config.model_dump(mode="json", include=keys)
        sources: dict[str, dict[str, str]] = {}
        for kind, paths in self.paths.items():
            sources[kind] = {path.name: sha256_of(path) for path in paths}
        MANIFEST.write(folder, {"model": model, "sources": sources})


def compose(qwen: Path, dino: Path, keys: Mapping[str, Any], seed: int) -> Composition:
    """Qwen3-VL and DINOv3 with random convolutions. Writes nothing."""
    sections = {
        "qwen": read_architecture(qwen, FAMILY),
        "dino": read_architecture(dino, DINO_FAMILY),
    }
    config = FutureVlaConfig.model_validate({**sections, **keys})
    with torch.device("meta"):
        network = build_network(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    language = StoredTensors(qwen)
    vision = StoredTensors(dino)
    read = _joined(shapes, language, vision, seed)
    tokenizer = parse_tokenizer(read_tokenizer(qwen))
    ids = special_ids(tokenizer)
    _check_ids(ids, sections["qwen"], qwen)
    present = names_in(qwen)
    names = [CONFIG, *(name for name in ASSETS if name in present and name != TOKENIZER)]
    return Composition(
        config=config,
        shapes=shapes,
        read=read,
        tokenizer=tokenizer.to_str(),
        assets={name: read_file(qwen / name) for name in names},
        paths={"qwen": language.paths, "dino": vision.paths},
    )


def _joined(
    shapes: Mapping[str, tuple[int, ...]], qwen: StoredTensors, dino: StoredTensors, seed: int
) -> Callable[[str], Tensor]:
    """Function that reads a tensor of the network: of Qwen3-VL, of DINOv3, or a new one."""
    dino_names = {f"{_DINO}{dino_name(name)}": name for name in dino.shapes}  # by our names
    _check_tensors(
        dino.folder,
        {name: shape for name, shape in shapes.items() if name.startswith(_DINO)},
        {ours: dino.shapes[name] for ours, name in dino_names.items()},
    )
    own = (_DINO, *_CONVOLUTIONS)
    expected = {name: shape for name, shape in shapes.items() if not name.startswith(own)}
    stored = dict(qwen.shapes)
    if _TIED not in expected:
        stored.pop(_TIED, None)
    _check_tensors(qwen.folder, expected, stored)
    # Normal weights and biases of 0 of the convolutions
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for name in sorted(shapes):
        if name.startswith(_CONVOLUTIONS):
            drawn[name] = torch.zeros(shapes[name])
            if drawn[name].dim() > 1:
                drawn[name].normal_(std=_STD, generator=generator)

    def read(name: str) -> Tensor:
        if name in drawn:
            return drawn[name]
        if name in dino_names:
            return dino.read(dino_names[name])
        return qwen.read(name)

    return read


def compose_tiny(keys: Mapping[str, Any], seed: int) -> Composition:
    """Small random networks with a text tokenizer on bytes. Writes nothing."""
    tokenizer = tiny_tokenizer()
    ids = special_ids(tokenizer)
    rows = _TINY_ROWS * math.ceil((max(ids.values()) + 1) / _TINY_ROWS)
    qwen = _tiny_qwen(ids, rows)
    config = FutureVlaConfig.model_validate(
        {"qwen": qwen, "dino": _TINY_DINO, "conv_width": _TINY_WIDTH, **keys}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_network(config).state_dict()
    return Composition(
        config=config,
        shapes={name: tuple(value.shape) for name, value in state.items()},
        read=state.__getitem__,
        tokenizer=tokenizer.to_str(),
        assets={CONFIG: json.dumps(config_json(config), indent=2).encode()},
    )


_TINY_WIDTH = 64
_TINY_DINO: Mapping[str, Any] = {
    "model_type": DINO_FAMILY,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "num_register_tokens": 4,
    "patch_size": 8,
    "key_bias": False,
}


def _tiny_qwen(ids: Mapping[str, int], rows: int) -> dict[str, Any]:
    """config.json of a tiny Qwen3-VL, which versions 4 and 5 of transformers read."""
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": rows,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
        "rope_scaling": rope,
        # Three times that of large networks: narrow layers learn in a third of the steps.
        "initializer_range": 0.06,
    }
    vision = {
        "model_type": FAMILY,
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return {
        "model_type": FAMILY,
        # A tied head changes what the embedding means to layers that were trained before.
        "tie_word_embeddings": False,
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["image_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "text_config": text,
        "vision_config": vision,
    }


def _check_tensors(
    folder: Path, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing {name}" for name in expected.keys() - stored.keys()]
    problems += [f"unexpected {name}" for name in stored.keys() - expected.keys()]
    for name, shape in expected.items():
        if name in stored and stored[name] != shape:
            problems.append(f"{name} is {list(stored[name])}, but config.json says {list(shape)}")
    if problems:
        text = "; ".join(sorted(problems)[:_SHOWN])
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError.at(
            folder,
            f"the weights do not match config.json: {text}{more}",
            hint="give the unchanged folders of Qwen3-VL (--qwen) and DINOv3 ViT (--dino)",
            code="data.checkpoint_mismatch",
            problems=sorted(problems),
        )


def _check_ids(ids: Mapping[str, int], qwen: Mapping[str, Any], folder: Path) -> None:
    """Raises DataError if tokenizer and network do not belong together."""
    rows = qwen["text_config"]["vocab_size"]
    expected = {
        "image_pad": qwen.get("image_token_id"),
        "vision_start": qwen.get("vision_start_token_id"),
        "vision_end": qwen.get("vision_end_token_id"),
    }
    wrong = [name for name, value in expected.items() if value not in (None, ids[name])]
    if wrong or max(ids.values()) >= rows:
        reason = (
            f"id of {wrong[0]} is {ids[wrong[0]]}, but config.json has {expected[wrong[0]]}"
            if wrong
            else f"its markers need {max(ids.values()) + 1} rows, but the embedding has {rows}"
        )
        raise DataError.at(
            folder / TOKENIZER,
            reason,
            hint="copy all files of the base model again, from one place",
            code="data.mismatch",
        )
