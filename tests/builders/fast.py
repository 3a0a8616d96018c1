"""Action tokenizers, and folders of raw windows to fit them on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.datasets.jsonl.layout import Window, episode_name, lines_name, render_window
from vlatool.media.lines import write_lines
from vlatool.transforms.action_tokenizer import ActionTokenizer, byte_characters

STEPS, WIDTH = 16, 7
LOWEST = -354  # of the published tokenizer

# Coefficients of the guide's sample, times 10; later rows are zero.
# Source: reference/future-vla 4.3.
GUIDE_ROWS = (
    (-8, -44, 1, 3, 0, 1, -40),
    (1, 28, 5, -4, -1, 0, 0),
    (1, -2, 1, 2, 0, 0, 0),
    (0, 0, -1, -1, 0, 0, 0),
    (0, -1, 0, 0, 0, 0, 0),
    (0, -1, 0, 0, 0, 0, 0),
    (0, 1, 0, 0, 0, 0, 0),
)


def guide_coefficients() -> np.ndarray:
    """Coefficients int64 [16, 7] of the guide's sample."""
    rows = np.zeros((STEPS, WIDTH), np.int64)
    rows[: len(GUIDE_ROWS)] = GUIDE_ROWS
    return rows


def byte_document(characters: Sequence[str] | None = None, **changes: Any) -> str:
    """Content of a tokenizer.json with one id per byte and no merges."""
    known = byte_characters() if characters is None else characters
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {
        "type": "BPE",
        "vocab": {character: index for index, character in enumerate(known)},
        "merges": [],
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": model,
    }
    return json.dumps({**content, **changes})


def byte_tokenizer(lowest: int = LOWEST) -> ActionTokenizer:
    """Tokenizer whose ids are the bytes of the text, without a fit."""
    return ActionTokenizer(byte_document(), 10.0, lowest)


def smooth_actions(seed: int, frames: int, width: int = WIDTH) -> np.ndarray:
    """Actions float64 [frames, width]: sums of slow waves, the last dimension a gripper."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, frames)[:, None]
    waves = (rng.normal(size=(1, width)) * np.sin(k * time * 3) for k in (1, 2, 3))
    actions = 0.3 * sum(waves, start=np.zeros((frames, width)))
    actions[:, -1] = np.where(time[:, 0] < 0.5, -1, 1)
    return actions


def smooth_chunks(seed: int = 0, frames: int = 60, width: int = WIDTH) -> np.ndarray:
    """Chunks float32 [frames - 15, 16, width] of `smooth_actions`."""
    actions = smooth_actions(seed, frames, width)
    starts = range(frames - STEPS + 1)
    return np.stack([actions[at : at + STEPS] for at in starts]).astype(np.float32)


def window_tree(
    folder: Path, episodes: int = 2, frames: int = 40, kinds: Sequence[Any] = ("vla", "wm")
) -> Path:
    """Writes windows of `smooth_actions`, a line of each kind per step; no images, no manifest."""
    for number in range(episodes):
        actions = smooth_actions(number, frames)
        padding = np.zeros((STEPS, WIDTH))
        padding[:, -1] = actions[-1, -1]
        padded = np.concatenate([actions, padding])
        lines = [
            render_window(Window(kind, "do it", (f"a{step}",), (f"b{step}",), chunk.tolist()))
            for step in range(frames)
            for chunk in [padded[step : step + STEPS]]
            for kind in kinds
        ]
        write_lines(folder, lines_name(episode_name(number)), lines)
    return folder
