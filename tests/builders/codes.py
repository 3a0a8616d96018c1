"""Small folder of windows, and codes for the images of any such folder in both layouts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlatool.datasets.codes.layout import (
    CODEBOOK_SIZE,
    CODES_PER_IMAGE,
    JSON_NAME,
    PACKED_NAME,
    CodesLayout,
    CodesManifest,
    EpisodeCodes,
    write_codes,
)
from vlatool.datasets.fast.layout import write_fast
from vlatool.datasets.jsonl.layout import (
    Kind,
    Window,
    episode_name,
    image_file,
    images_name,
    lines_name,
    render_window,
)
from vlatool.episode import Array
from vlatool.media.images import encode_png
from vlatool.media.lines import write_lines
from vlatool.transforms.action_tokenizer import ActionTokenizer, byte_characters

CAMERAS = ("image", "wrist_image")
STEPS, WIDTH = 16, 7
TOKENIZER = "builder"


def codes_of(stem: str, count: int = CODES_PER_IMAGE, size: int = CODEBOOK_SIZE) -> Array:
    """Codes [count] below `size`, derived from the name of an image."""
    seed = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8])
    draws = np.random.Generator(np.random.Philox(seed)).integers(0, size, count)
    return draws.astype(np.uint16)


def write_tree_codes(
    tree: Path,
    layout: CodesLayout = "json",
    *,
    folder: Path | None = None,
    name: str = TOKENIZER,
    sizes: tuple[int, int] = (CODES_PER_IMAGE, CODEBOOK_SIZE),
) -> Path:
    """Writes codes for all images of a folder of windows; returns their folder."""
    target = folder or tree / (PACKED_NAME if layout == "packed" else JSON_NAME)
    digests: dict[str, str] = {}
    images = 0
    for episode in sorted((tree / "images").iterdir()):
        stems = [path.stem for path in episode.glob("*.png")]
        codes = EpisodeCodes.of(episode.name, {stem: codes_of(stem, *sizes) for stem in stems})
        write_codes(target, layout, codes, tokenizer_digest(name))
        digests[episode.name] = codes.digest
        images += len(stems)
    manifest = CodesManifest(
        *sizes,
        tokenizer=name,
        tokenizer_digest=tokenizer_digest(name),
        precision="fp32",
        layout=layout,
    ).of_episodes(digests, images)
    manifest.save(target)
    return target


def tokenizer_digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def published_windows(
    folder: Path,
    episodes: int = 2,
    frames: int = 4,
    *,
    kinds: Sequence[Kind] = ("vla", "wm"),
    task: str = "put the mug on the plate",
) -> Path:
    """Writes a folder of windows of 16 steps in the published form: no manifest, no record."""
    png = encode_png(np.zeros((8, 8, 3), np.uint8))
    for number in range(episodes):
        episode = episode_name(number)
        image_folder = folder / images_name(episode)
        image_folder.mkdir(parents=True)
        names = [[image_file("X", camera, episode, n) for camera in CAMERAS] for n in range(frames)]
        for name in (name for pair in names for name in pair):
            (image_folder / name).write_bytes(png)
        lines = [
            render_window(_window(kind, f"{task} {number}", episode, names, step))
            for step in range(frames)
            for kind in kinds
        ]
        write_lines(folder, lines_name(episode), lines)
    return folder


def plain_fast(folder: Path, *, scale: float = 10.0) -> Path:
    """Writes an action tokenizer without merges: an id for each byte of each coefficient."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    write_fast(folder, ActionTokenizer(json.dumps(document), scale, -354), 2048)
    return folder


def _window(
    kind: Kind, task: str, episode: str, names: Sequence[Sequence[str]], step: int
) -> Window:
    def paths(offsets: range) -> tuple[str, ...]:
        frames = (min(max(step + at, 0), len(names) - 1) for at in offsets)
        return tuple(f"{images_name(episode)}/{name}" for frame in frames for name in names[frame])

    chunk = [_action(step + at, len(names)) for at in range(STEPS)]
    return Window(kind, task, paths(range(1 - STEPS, 1)), paths(range(1, STEPS + 1)), chunk)


def _action(step: int, frames: int) -> tuple[float, ...]:
    if step >= frames:
        return (0.0,) * (WIDTH - 1) + (-1.0,)
    return (*np.sin(0.1 * step + np.arange(WIDTH - 1)).tolist(), -1.0)


def read_json_codes(path: Path) -> list[int]:
    """Codes of a published file."""
    return [row[0] for row in json.loads(path.read_text())]
