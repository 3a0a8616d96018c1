"""Small images, a tiny tokenizer in the published layout, and runs of encode on them."""

from pathlib import Path
from typing import Any

import torch

from tests.builders.images import CAMERAS, image, saved, write
from tests.builders.tokenizers import PIXELS, SIDE, tiny_titok
from vlatool.events import NULL, Reporter
from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.model import Titok
from vlatool.models.titok.weights import save_published
from vlatool.tokens.config import EncodeConfig
from vlatool.workflows.encode import EncodeResult, encode

EPISODES, FRAMES = 3, 5


def write_tokenizer(folder: Path, seed: int = 3, **keys: Any) -> str:
    """Writes a published folder of the tiny second stage, with some keys changed."""
    torch.manual_seed(seed)
    config = tiny_titok(**{"stage": 2, **keys})
    return _published(folder, config)


def write_continuous_tokenizer(folder: Path) -> str:
    """Writes a published folder of a tokenizer without codes."""
    keys = {"image_size": SIDE, **PIXELS, "quantizer": {"type": "kl"}}
    return _published(folder, TitokConfig.model_validate(keys))


def _published(folder: Path, config: TitokConfig) -> str:
    folder.mkdir()
    save_published(folder, config, Titok(config))
    return str(folder)


def image_tree(root: Path, episodes: int = EPISODES, side: int = SIDE) -> Path:
    """Writes images of two cameras in the layout of LIBERO windows, of the tokenizer's size."""
    for episode in range(episodes):
        for index, camera in enumerate(CAMERAS):
            for frame in range(FRAMES):
                number = (episode * 2 + index) * FRAMES + frame
                write(root, image_name(episode, camera, frame), saved(image(number, side, side)))
    return root


def image_name(episode: int, camera: str = "image", frame: int = 2) -> str:
    """Path of an image in the tree."""
    name = f"X_{camera}_episode_{episode:06d}_frame_{frame:06d}.png"
    return f"images/episode_{episode:06d}/{name}"


def encoded(
    data: Path,
    tokenizer: str,
    output: Path | None = None,
    reporter: Reporter = NULL,
    **options: Any,
) -> EncodeResult:
    """Encodes in this process."""
    tree = {"data": str(data), "tokenizer": tokenizer, "num_workers": 0, "check_every": 4}
    target = {} if output is None else {"output": str(output)}
    return encode(EncodeConfig.model_validate({**tree, **target, **options}), reporter=reporter)
