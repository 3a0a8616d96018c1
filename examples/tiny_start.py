"""Weights for a tiny FUTURE-VLA that acts in the built-in world, which know what its words mean.

    python examples/tiny_start.py start

The released DINOv3 and Qwen3-VL have seen a billion images and know what "red" is; random ones
would have to learn it from the actions of a policy, where it is the smallest part of the loss. This
script stands in between: it draws random scenes of the built-in world, where the simulator knows
every position, and asks the weights of `vlatool compose --tiny`, each time through a linear layer
that is thrown away:

1. of DINOv3, at each patch of 8 x 8 pixels: which things are in it, and where are they?
2. of the first two layers of the language model, at the name of a thing: where is it? And before
   each code of an image: what is in its patch now?
3. of the first three, of which the third alone is trained, at each token of an answer of random
   action ids: where is the block that the instruction names, where are the bin and the hand?

It needs the extra `train`, and takes about 20 minutes of one core; `--device cuda` trains on a GPU.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.artifacts.samples.episode import Conversation, SampleSizes
from vlatool.events import NULL
from vlatool.models.future_vla.batch import SequenceEncoder, padded
from vlatool.models.future_vla.compose import compose_tiny
from vlatool.models.future_vla.model import FutureVla, build_network
from vlatool.models.future_vla.token_ids import TokenIds, parse_tokenizer
from vlatool.models.future_vla.vision import Dino
from vlatool.world import scene as world
from vlatool.world.render import View, cameras_for

SIDE, VIEWS = 64, 2
COMPRESS = (0, 0, 1)  # past steps of future-vla-tiny-data
THINGS = 5  # three blocks, the bin, the hand
BIN, HAND = 3, 4
FEWEST_PIXELS = 3  # of a thing in a patch that it counts for
# Positions and openings are learned in decimeters.
UNIT = 10.0
# Words of all questions that stand for the things; the hand has no name in them.
WORDS = (*world.COLORS, "bin", "action")
REST = 0.2  # weight of bin, hand and opening in the third part: which block is hardest to find
NAMES = 6  # in a text of the second part
SEEN = 4 * THINGS + 1  # numbers about a patch: presence and position of each thing, opening
# Codes, their number and action ids as in the guide; the map to token ids depends on them.
SIZES = SampleSizes(codes_per_image=64, codebook_size=128, action_ids=256)
ACTION_IDS = 28


class Scenes(NamedTuple):
    """Images of random moments and what is known about them: N moments, V views, P patches, T
    things.
    """

    images: Tensor  # uint8 [N, V, 64, 64, 3]
    present: Tensor  # bool [N, V, P, T]
    positions: Tensor  # in meters, by view relative to the table or the hand, float32 [N, V, T, 3]
    openings: Tensor  # of the hand, in meters, float32 [N]

    def of(self, rows: Tensor) -> "Scenes":
        return Scenes(*(values[rows] for values in self))


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


def random_scenes(count: int, seed: int, patch: int) -> Scenes:
    """Images of both cameras at random moments; `patch`: side of a patch in pixels."""
    rng = np.random.default_rng(seed)
    grid = SIDE // patch
    views = [View(camera, (SIDE, SIDE)) for camera in cameras_for(VIEWS)]
    images = np.empty((count, VIEWS, SIDE, SIDE, 3), np.uint8)
    present = np.empty((count, VIEWS, grid * grid, THINGS), np.bool_)
    positions = np.empty((count, VIEWS, THINGS, 3), np.float32)
    openings = np.empty(count, np.float32)
    for row in range(count):
        scene = random_moment(rng)
        hand, openings[row] = scene.gripper[:3], scene.gripper[3]
        positions[row] = [*scene.blocks, [*scene.bin, 0.0], hand]
        for at, view in enumerate(views):
            images[row, at] = view.draw(scene)
            labels = view.measure(scene).labels.reshape(grid, patch, grid, patch)
            patches = labels.transpose(0, 2, 1, 3).reshape(grid * grid, -1, 1)
            is_present = (patches == np.arange(1, THINGS + 1)).sum(axis=1) >= FEWEST_PIXELS
            present[row, at] = is_present
            positions[row, at] -= hand if view.camera.on_hand else [0.5, 0.5, 0.0]
            positions[row, at, HAND, 2] = hand[2]
    return Scenes(*map(torch.from_numpy, (images, present, positions, openings)))


class Training(NamedTuple):
    """What the three parts have in common."""

    scenes: Scenes
    batch_size: int
    lr: float

    def run(
        self,
        parameters: list[nn.Parameter],
        steps: int,
        loss: Callable[[Scenes], tuple[Tensor, Tensor]],  # loss, and an error in `UNIT` to print
    ) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=(0.9, 0.98), weight_decay=0.01)

        def rate(step: int) -> float:
            warmed = min(1.0, (step + 1) / (0.05 * steps))
            return warmed * (1 + math.cos(math.pi * step / steps)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        for step in range(1, steps + 1):
            rows = torch.randint(len(self.scenes.images), (self.batch_size,))
            total, error = loss(self.scenes.of(rows))
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                print(f"  step {step}: error {error.detach().item() / UNIT:.4f} m", flush=True)


def seen_loss(predicted: Tensor, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Loss of what is in each patch and where it is, float32 [N, V, P, SEEN], and the error of the
    latter.
    """
    logits, rest = predicted[..., :THINGS], predicted[..., THINGS:]
    positions, opening = rest[..., :-1].unflatten(-1, (THINGS, 3)), rest[..., -1]
    present = scenes.present.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, present)
    truth = UNIT * scenes.positions[:, :, None]
    missed = ((positions - truth).abs().mean(dim=-1) * present).sum() / present.sum()
    hand = present[..., HAND]
    wrong = (opening - UNIT * scenes.openings[:, None, None]).abs() * hand
    return 5 * entropy + missed + 0.5 * wrong.sum() / hand.sum().clamp(min=1), missed


def learn_to_see(dino: Dino, training: Training, steps: int) -> None:
    """Trains DINOv3 to say what is in a patch, and where it is."""
    head = nn.Linear(dino.config.hidden_size, SEEN)

    def loss(scenes: Scenes) -> tuple[Tensor, Tensor]:
        features = dino(scenes.images.flatten(0, 1)).flatten(2).transpose(1, 2)
        return seen_loss(head(features).unflatten(0, (-1, VIEWS)), scenes)

    training.run([*dino.parameters(), *head.parameters()], steps, loss)
    dino.requires_grad_(requires_grad=False)


def random_answer(task: str, images: int) -> Conversation:
    """An answer of random action ids and codes."""
    ids = torch.randint(SIZES.action_ids, (ACTION_IDS,), device="cpu").tolist()
    codes = torch.randint(SIZES.codebook_size, (images, SIZES.codes_per_image), device="cpu")
    return Conversation("vla", task, VIEWS, tuple(ids), codes.numpy().astype(np.uint16))


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in batch.items()}


def first_layers(
    network: FutureVla, count: int, batch: dict[str, Tensor], scenes: Scenes
) -> Tensor:
    """What the first layers alone make of a batch, float32 [B, L, C]."""
    language = network.language_model
    layers = language.layers
    language.layers = layers[:count]
    hidden = network(batch["input_ids"], batch["position_ids"], images=scenes.images)
    language.layers = layers
    return hidden


def learn_names(
    network: FutureVla, encoder: SequenceEncoder, training: Training, steps: int
) -> None:
    """Trains the first two layers to know at the name of a thing where it is, and before each code
    of an image what is in its patch now.
    """
    language = network.language_model
    head, seen = (nn.Linear(language.embed_tokens.embedding_dim, size) for size in (4, SEEN))
    first, count = encoder.tokens.first_code, encoder.tokens.num_codes
    tokens = torch.tensor([encoder.text(f" {word}")[0] for word in WORDS])
    end = encoder.tokens.end_of_text

    def loss(scenes: Scenes) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(HAND, (len(scenes.images), NAMES)).tolist()  # the question has it
        texts = [" ".join(WORDS[number] for number in row) for row in drawn]
        rows = [encoder.encode(random_answer(text, VIEWS)) for text in texts]
        batch = on_device(padded(rows, end), tokens.device)
        ids = batch["input_ids"]
        row, at, which = (ids[..., None] == tokens).nonzero().unbind(1)
        hidden = first_layers(network, 2, batch, scenes)
        found = head(hidden[row, at])
        missed = found[:, :3] - UNIT * scenes.positions[row, 0, which]
        opening = found[:, 3] - UNIT * scenes.openings[row]
        total = missed.abs().mean() + opening[which == HAND].abs().mean()
        is_code = (ids[:, 1:] >= first) & (ids[:, 1:] < first + count)
        shape = len(ids), VIEWS, SIZES.codes_per_image, -1
        total = total + seen_loss(seen(hidden[:, :-1][is_code].reshape(shape)), scenes)[0]
        return total, missed.norm(dim=-1).mean()

    tower = [value for name, value in network.visual.named_parameters() if "vis_tok" not in name]
    parts = language.embed_tokens, language.layers[:2], head, seen
    parameters = [value for part in parts for value in part.parameters()] + tower
    training.run([value for value in parameters if value.requires_grad], steps, loss)


def learn_answers(
    network: FutureVla, encoder: SequenceEncoder, training: Training, steps: int
) -> None:
    """Trains the third layer to know at each token of an answer all that it depends on."""
    head = nn.Linear(network.language_model.embed_tokens.embedding_dim, 10)

    def loss(scenes: Scenes) -> tuple[Tensor, Tensor]:
        count, places = len(scenes.images), scenes.positions[:, 0]
        which = torch.randint(len(world.COLORS), (count,))
        tasks = [world.instruction_for(world.COLORS[number]) for number in which.tolist()]
        rows = [encoder.encode(random_answer(task, images=0)) for task in tasks]
        batch = on_device(padded(rows, encoder.tokens.end_of_text), places.device)
        row, at = (batch["segments"] != 0).nonzero().unbind(1)
        truth = places[torch.arange(count), which], places[:, BIN], places[:, HAND]
        wanted = UNIT * torch.cat([*truth, scenes.openings[:, None]], dim=-1)
        missed = head(first_layers(network, 3, batch, scenes)[row, at]) - wanted[row]
        block, rest = missed[:, :3], missed[:, 3:]
        return block.abs().mean() + REST * rest.abs().mean(), block.norm(dim=-1).mean()

    network.requires_grad_(requires_grad=False)
    third = network.language_model.layers[2].requires_grad_(requires_grad=True)
    training.run([*third.parameters(), *head.parameters()], steps, loss)


def main() -> None:
    """Draws scenes, trains part by part, and writes a folder as `vlatool compose` does."""
    parser = argparse.ArgumentParser(description="Weights for a tiny FUTURE-VLA that acts.")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument(
        "--steps", type=int, nargs=3, default=[1_500, 700, 400], help="of each part"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)
    composition = compose_tiny({"compress": COMPRESS}, arguments.seed)
    network = build_network(composition.config)
    network.load_state_dict({name: composition.read(name) for name in composition.shapes})
    network.to(arguments.device)
    dino = network.visual.vis_tok
    side = SIDE // dino.patch_size // network.visual.config.spatial_merge_size
    tokens = TokenIds.of(parse_tokenizer(composition.tokenizer), SIZES)
    encoder = SequenceEncoder(composition.tokenizer, tokens, (side,) * VIEWS)
    torch.manual_seed(arguments.seed)
    scenes = random_scenes(arguments.scenes, arguments.seed, dino.patch_size)
    scenes = Scenes(*(values.to(arguments.device) for values in scenes))
    training = Training(scenes, arguments.batch_size, arguments.lr)
    first, second, third = arguments.steps
    print("DINOv3 learns what is in a patch, and where", flush=True)
    dino.requires_grad_(requires_grad=True)
    learn_to_see(dino, training, first)
    print("two layers learn the names of the things", flush=True)
    learn_names(network, encoder, training, second)
    print("the third layer learns where to go", flush=True)
    learn_answers(network, encoder, training, third)
    state = network.cpu().state_dict()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with NULL.progress("write", len(state), "tensors") as bar:
        replace(composition, read=state.__getitem__).write(arguments.output, bar)


if __name__ == "__main__":
    main()
