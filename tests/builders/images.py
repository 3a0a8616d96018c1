"""Folders of small images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlatool.config.resolve import config_of
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

WIDTH, HEIGHT = 24, 16
CAMERAS = ("image", "wrist_image")


def image(number: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """RGB noise that depends on `number`."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def window_tree(root: Path, episodes: int = 3, frames: int = 2) -> Path:
    """Images of two cameras per step below `images/`, named as published; all differ."""
    for episode in range(episodes):
        for index, camera in enumerate(CAMERAS):
            for frame in range(frames):
                name = f"LIBERO_{camera}_episode_{episode:06d}_frame_{frame:06d}.png"
                number = (episode * 2 + index) * frames + frame
                write(root, f"images/episode_{episode:06d}/{name}", saved(image(number)))
    return root


def write(root: Path, name: str, content: bytes = b"") -> Path:
    """Writes a file below a folder."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image_shards(source: Path, output: Path, /, **options: Any) -> PreprocessResult:
    """Runs `preprocess images` with one worker."""
    tree = {
        "format": "images",
        "sink": "image-shards",
        "sources": [str(source)],
        "output": str(output),
        "workers": 1,
        **options,
    }
    return preprocess(config_of(PreprocessConfig, tree))
