"""A small DINOv3 that knows where things are, for `vlatool compose --tiny --dino`.

    python examples/dino_probe.py dino
    vlatool compose --tiny --dino dino --output tiny

The released DINOv3 has seen a billion images; a random one has to learn to see from the actions of
a policy. This script stands in between: it draws random scenes of the built-in world, where the
simulator knows every position, and trains a small DINOv3 and a linear layer to tell from each patch
of 8 x 8 pixels which things are in it, and where they are. The linear layer is thrown away. It
needs the extra `train`, and takes about nine minutes of one core.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig

from vlatool.models.future_vla.vision import Dino
from vlatool.world import scene as world
from vlatool.world.render import View, cameras_for

PATCH, SIDE = 8, 64
GRID = SIDE // PATCH
THINGS = 5  # three blocks, the bin, the hand
FEWEST_PIXELS = 3  # of a thing in a patch that it counts for
# Positions and openings are learned in decimeters.
UNIT = 10.0
ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "num_register_tokens": 4,
    "patch_size": PATCH,
    "key_bias": False,
}


class Labelled(NamedTuple):
    """Images and what is known about them: N images, P patches, T things."""

    images: Tensor  # uint8 [N, 64, 64, 3]
    present: Tensor  # bool [N, P, T]
    positions: Tensor  # in meters, relative to the table or the hand, float32 [N, T, 3]
    openings: Tensor  # of the hand, in meters, float32 [N]


def random_moment(rng: np.random.Generator) -> world.Scene:
    """A scene in the middle of an episode: the hand anywhere, a block in it or in the bin."""
    scene = world.random_scene(rng)
    hand, blocks, held = scene.gripper.copy(), scene.blocks.copy(), None
    hand[:3] = rng.uniform([0.05, 0.05, 0.02], [0.95, 0.95, 0.32])
    if rng.random() < 0.5:  # near something
        near = [*blocks[:, :2], scene.bin][rng.integers(4)]
        hand[:2] = np.clip(near + rng.normal(0, 0.06, 2), 0.03, 0.97)
        hand[2] = rng.uniform(0.02, 0.2)
    hand[3] = rng.uniform(0, world.OPEN) if rng.random() < 0.3 else rng.choice([0.0, world.OPEN])
    if rng.random() < 0.35:
        held = int(rng.integers(3))
        hand[3] = world.HELD_OPENING
        blocks[held] = [*hand[:2], max(hand[2] + 0.01, world.BLOCK_HALF)]
    elif rng.random() < 0.2:
        margin = world.BIN_HALF - world.BIN_WALL - world.BLOCK_HALF
        inside = scene.bin + rng.uniform(-margin, margin, 2)
        blocks[rng.integers(3)] = [*inside, world.BLOCK_HALF]
    return replace(scene, gripper=hand, blocks=blocks, held=held)


def labelled(count: int, seed: int) -> Labelled:
    """Images of both cameras at `count` / 2 random moments."""
    rng = np.random.default_rng(seed)
    views = [View(camera, (SIDE, SIDE)) for camera in cameras_for(2)]
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    present = np.empty((count, GRID * GRID, THINGS), np.bool_)
    positions = np.empty((count, THINGS, 3), np.float32)
    openings = np.empty(count, np.float32)
    for start in range(0, count - 1, 2):
        scene = random_moment(rng)
        for row, view in enumerate(views, start):
            images[row] = view.draw(scene)
            labels = view.measure(scene).labels.reshape(GRID, PATCH, GRID, PATCH)
            patches = labels.transpose(0, 2, 1, 3).reshape(GRID * GRID, -1, 1)
            present[row] = (patches == np.arange(1, THINGS + 1)).sum(axis=1) >= FEWEST_PIXELS
            hand = scene.gripper[:3]
            positions[row] = [*scene.blocks, [*scene.bin, 0.0], hand]
            positions[row] -= hand if view.camera.on_hand else [0.5, 0.5, 0.0]
            if view.camera.on_hand:
                positions[row, -1, 2] = hand[2]
            openings[row] = scene.gripper[3]
    return Labelled(*map(torch.from_numpy, (images, present, positions, openings)))


def errors(network: Dino, head: nn.Linear, data: Labelled) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of what is in a patch; mean errors of positions and opening, in `UNIT`."""
    predicted = head(network(data.images).flatten(2).transpose(1, 2))
    logits, rest = predicted[..., :THINGS], predicted[..., THINGS:]
    positions, opening = rest[..., :-1].unflatten(-1, (THINGS, 3)), rest[..., -1]
    present = data.present.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, present)
    missed = (positions - UNIT * data.positions[:, None]).abs().mean(dim=-1) * present
    wrong = (opening - UNIT * data.openings[:, None]).abs() * present[..., -1]
    return entropy, missed.sum() / present.sum(), wrong.sum() / present[..., -1].sum().clamp(min=1)


def main() -> None:
    """Draws, trains, and writes the folder of a DINOv3 as on the hub."""
    parser = argparse.ArgumentParser(description="A small DINOv3 that knows where things are.")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = labelled(arguments.images, arguments.seed)
    torch.manual_seed(arguments.seed)
    options: dict[str, Any] = {**ARCHITECTURE, "attn_implementation": "sdpa"}
    config = DINOv3ViTConfig(**options)
    network = Dino(config)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.06)
            nn.init.zeros_(module.bias) if module.bias is not None else None
    for token in (network.embeddings.cls_token, network.embeddings.register_tokens):
        nn.init.normal_(token, std=0.02)
    head = nn.Linear(config.hidden_size, 4 * THINGS + 1)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, arguments.steps, pct_start=0.05)
    for step in range(1, arguments.steps + 1):
        rows = torch.randint(arguments.images, (arguments.batch_size,))
        entropy, missed, wrong = errors(network, head, Labelled(*(each[rows] for each in data)))
        optimizer.zero_grad()
        (5 * entropy + missed + 0.5 * wrong).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            figures = f"{float(missed) / UNIT:.4f} m, opening {float(wrong) / UNIT:.4f} m"
            print(f"step {step}: positions {figures}", flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, arguments.output / "model.safetensors")
    content = {"model_type": "dinov3_vit", **ARCHITECTURE}
    (arguments.output / "config.json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
