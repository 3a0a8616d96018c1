"""Small pictures, a tiny tokenizer as it is published, and runs of encode over them."""

from pathlib import Path
from typing import Any

import torch

from tests.builders.images import CAMERAS, image, saved, write
from tests.builders.tokenizers import PIXELS, SIDE, tiny_titok
from vlatool.models.titok.model import Titok
from vlatool.models.titok.spec import TitokConfig
from vlatool.models.titok.weights import save_published
from vlatool.workflows.encode import EncodeConfig, EncodeResult, encode

EPISODES, FRAMES = 3, 5


def write_tokenizer(folder: Path, seed: int = 3, **keys: Any) -> str:
    """A published folder of the tiny second stage, or with other keys."""
    torch.manual_seed(seed)
    config = tiny_titok(**{"stage": 2, "init_weight": "stage-1", **keys})
    return _published(folder, config)


def write_continuous_tokenizer(folder: Path) -> str:
    """A published folder of a tokenizer without codes."""
    keys = {"image_size": SIDE, **PIXELS, "quantizer": {"type": "kl"}}
    return _published(folder, TitokConfig.model_validate(keys))


def _published(folder: Path, config: TitokConfig) -> str:
    folder.mkdir()
    save_published(folder, config, Titok(config))
    return str(folder)


def image_tree(root: Path, episodes: int = EPISODES, side: int = SIDE) -> Path:
    """Pictures of two cameras as the windows of LIBERO have them, in the size of the tokenizer."""
    for episode in range(episodes):
        for place, camera in enumerate(CAMERAS):
            for frame in range(FRAMES):
                number = (episode * 2 + place) * FRAMES + frame
                write(root, image_name(episode, camera, frame), saved(image(number, side, side)))
    return root


def image_name(episode: int, camera: str = "image", frame: int = 2) -> str:
    """Where one of them is."""
    name = f"X_{camera}_episode_{episode:06d}_frame_{frame:06d}.png"
    return f"images/episode_{episode:06d}/{name}"


def encoded(data: Path, tokenizer: str, output: Path | None = None, **options: Any) -> EncodeResult:
    """A run in this process."""
    tree = {"data": str(data), "tokenizer": tokenizer, "num_workers": 0, "check_every": 4}
    place = {} if output is None else {"output": str(output)}
    return encode(EncodeConfig.model_validate({**tree, **place, **options}))
