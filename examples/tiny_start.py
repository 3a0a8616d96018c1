"""Weights for a tiny FUTURE-VLA that acts in the built-in world, which know what its words mean.

    python examples/tiny_start.py start --fast fast

The released DINOv3 and Qwen3-VL have seen a billion images and know what "red" is; random ones
would have to learn it from the actions of a policy, where it is the smallest part of the loss. This
script stands in between: it draws random moments of the built-in world and the four that follow if
the expert acts, where the simulator knows every position, and asks the weights of `vlatool compose
--tiny`, each time through a linear layer that is thrown away:

1. of DINOv3, at each patch of 8 x 8 pixels: which things are in it, and where are they?
2. of the first two layers of the language model, at the name of a thing: where is it? After the
   action ids: where will the hand be? And before each code of a future image: what will be in its
   patch?
3. of the first three, at each token of an answer: where is the block that the instruction names,
   where are the bin and the hand? And before each code of a future image: what will be in its
   patch, and where will the hand be?

It needs the extra `train` and the action tokenizer of the data, and takes 75 minutes of one slow
core; `--device cuda` trains on a GPU.
"""

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.datasets.fast.layout import read_fast
from vlatool.datasets.samples.episode import Conversation, SampleSizes
from vlatool.datasets.samples.profile import NAME, read_profile
from vlatool.episode import Array
from vlatool.events import NULL
from vlatool.models.future_vla.batch import ACTION, FUTURE, TEXT, SequenceEncoder, padded
from vlatool.models.future_vla.compose import compose_tiny
from vlatool.models.future_vla.model import FutureVla, build_network
from vlatool.models.future_vla.token_ids import TokenIds, parse_tokenizer
from vlatool.models.future_vla.vision import Dino
from vlatool.world import scene as world
from vlatool.world.recording import Disturbance, expert_action
from vlatool.world.render import View, cameras_for

SIDE, VIEWS = 64, 2
CAMERAS = [View(camera, (SIDE, SIDE)) for camera in cameras_for(VIEWS)]
COMPRESS = (0, 0, 1)  # past steps of future-vla-tiny-data
STEPS = 4  # future ones
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
CENTER = (0.5, 0.5, 0.0)  # of the table
NOW, LATER = slice(VIEWS), slice(VIEWS, None)  # images of `Scenes`
DRAWN = 500  # moments that a process draws at a time
SHOWN = 2  # future images of an answer, of 8
ROW = ("input_ids", "segments")


class Scenes(NamedTuple):
    """Images of random moments, and what is known about them and the steps that follow: N moments,
    S future steps, I images (V views of the present, then some future ones), P patches, T things.
    """

    images: Tensor  # of the present, uint8 [N, V, 64, 64, 3]
    hand: Tensor  # place relative to the table and opening, in `UNIT`, float32 [N, 1 + S, 4]
    shown: Tensor  # numbers of the future images among those of all steps, int64 [N, I - V]
    present: Tensor  # bool [N, I, P, T]
    positions: Tensor  # by view relative to the table or the hand, in `UNIT`, [N, I, T, 3]
    openings: Tensor  # of the hand, in `UNIT`, float32 [N, I]
    ids: Tensor  # action ids of the steps, then -1, int64 [N, longest]

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


def random_scenes(count: int, seed: int, patch: int, fast: Path) -> Scenes:
    """Random moments, drawn on all processors; `patch`: side of a patch in pixels, `fast`: folder
    of the action tokenizer.
    """
    tokenizer, profile = read_fast(fast), read_profile(str(fast / NAME))
    starts = range(0, count, DRAWN)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
        draw = partial(draw_moments, count=min(count, DRAWN), seed=seed, patch=patch)
        drawn = pool.map(draw, starts)
        arrays = [np.concatenate(parts)[:count] for parts in zip(*drawn, strict=True)]
    *known, actions = arrays
    ids = tokenizer.encode(profile.normalize(actions))
    rows = np.full((count, max(map(len, ids))), -1)
    for row, numbers in zip(rows, ids, strict=True):
        row[: len(numbers)] = numbers
    return Scenes(*map(torch.from_numpy, (*known, rows)))


def draw_moments(first: int, count: int, seed: int, patch: int) -> tuple[Array, ...]:
    """Arrays of `Scenes` of some moments, and actions float32 [N, S, 7] in place of the ids."""
    rng = np.random.default_rng([seed, first])
    moments = [draw_moment(rng, patch) for _ in range(count)]
    return tuple(np.stack(values) for values in zip(*moments, strict=True))


def draw_moment(rng: np.random.Generator, patch: int) -> tuple[Array, ...]:
    scene, target = random_moment(rng), int(rng.integers(len(world.COLORS)))
    scenes, actions = [scene], list[Array]()
    disturbance = Disturbance(rng)
    for _ in range(STEPS):
        action = expert_action(scenes[-1], target)
        actions.append(world.libero_actions(action[None], scenes[-1].gripper[None])[0])
        scenes.append(world.step(scenes[-1], action, disturbance.sample()))
    shown = np.sort(rng.choice(STEPS * VIEWS, SHOWN, replace=False))
    known = [
        seen_in(CAMERAS[image % VIEWS], scenes[image // VIEWS], patch)
        for image in (*range(VIEWS), *(VIEWS + shown))
    ]
    present, positions, openings = (np.stack(values) for values in zip(*known, strict=True))
    images = np.stack([view.draw(scene) for view in CAMERAS])
    hand = np.stack([each.gripper for each in scenes]) - [*CENTER, 0]
    taken = np.stack(actions)
    return images, metric(hand), shown, present, metric(positions), metric(openings), taken


def metric(values: Array) -> Array:
    return (UNIT * values).astype(np.float32)


def seen_in(view: View, scene: world.Scene, patch: int) -> tuple[Array, Array, float]:
    """Which things are in each patch, bool [P, T], where they are [T, 3], and the opening."""
    grid = SIDE // patch
    labels = view.measure(scene).labels.reshape(grid, patch, grid, patch)
    patches = labels.transpose(0, 2, 1, 3).reshape(grid * grid, -1, 1)
    present = (patches == np.arange(1, THINGS + 1)).sum(axis=1) >= FEWEST_PIXELS
    hand = scene.gripper[:3]
    places = np.stack([*scene.blocks, [*scene.bin, 0.0], hand])
    places -= hand if view.camera.on_hand else CENTER
    places[HAND, 2] = hand[2]
    return present, places, scene.gripper[3]


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


def seen_loss(predicted: Tensor, scenes: Scenes, images: slice) -> tuple[Tensor, Tensor]:
    """Loss of what is in each patch of some images and where it is, float32 [N, I, P, SEEN], and
    the error of the latter.
    """
    logits, rest = predicted[..., :THINGS], predicted[..., THINGS:]
    positions, opening = rest[..., :-1].unflatten(-1, (THINGS, 3)), rest[..., -1]
    present = scenes.present[:, images].float()
    entropy = functional.binary_cross_entropy_with_logits(logits, present)
    missed = (positions - scenes.positions[:, images, None]).abs().mean(dim=-1)
    missed = (missed * present).sum() / present.sum()
    hand = present[..., HAND]
    wrong = (opening - scenes.openings[:, images, None]).abs() * hand
    return 5 * entropy + missed + 0.5 * wrong.sum() / hand.sum().clamp(min=1), missed


def learn_to_see(dino: Dino, training: Training, steps: int) -> None:
    """Trains DINOv3 to say what is in a patch, and where it is."""
    head = nn.Linear(dino.config.hidden_size, SEEN)

    def loss(scenes: Scenes) -> tuple[Tensor, Tensor]:
        features = dino(scenes.images.flatten(0, 1)).flatten(2).transpose(1, 2)
        return seen_loss(head(features).unflatten(0, (-1, VIEWS)), scenes, NOW)

    training.run([*dino.parameters(), *head.parameters()], steps, loss)
    dino.requires_grad_(requires_grad=False)


def answers(encoder: SequenceEncoder, tasks: list[str], scenes: Scenes) -> dict[str, Tensor]:
    """A batch of answers to tasks with random codes. Of the future images only those shown are in
    it, each at its place: the others would take most of the time.
    """
    shape = len(tasks), STEPS * VIEWS, SIZES.codes_per_image
    codes = torch.randint(SIZES.codebook_size, shape, device="cpu").numpy().astype(np.uint16)
    rows = [
        encoder.encode(Conversation("vla", task, VIEWS, tuple(n for n in ids if n >= 0), row))
        for task, ids, row in zip(tasks, scenes.ids.tolist(), codes, strict=True)
    ]
    batch = padded(rows, encoder.tokens.end_of_text)
    number = (batch["input_ids"] == encoder.tokens.future_start).cumsum(1) - 1
    is_shown = (number[..., None] == scenes.shown.cpu()[:, None]).any(dim=-1)
    is_in = (batch["segments"] != FUTURE) | is_shown
    shown = {name: batch[name][is_in].unflatten(0, (len(tasks), -1)) for name in ROW}
    positions = batch["position_ids"].transpose(1, 2)[is_in].unflatten(0, (len(tasks), -1))
    shown["position_ids"] = positions.transpose(1, 2)
    return {name: values.to(scenes.images.device) for name, values in shown.items()}


def before_codes(hidden: Tensor, ids: Tensor, tokens: TokenIds) -> Tensor:
    """What precedes the codes of images, float32 [B, I, K, C]; `hidden`: [B, L, C]."""
    codes = (ids >= tokens.first_code) & (ids < tokens.first_code + tokens.num_codes)
    return hidden[:, :-1][codes[:, 1:]].reshape(len(ids), SHOWN, tokens.codes_per_image, -1)


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


def learn_words(
    network: FutureVla, encoder: SequenceEncoder, training: Training, steps: int
) -> None:
    """Trains the first two layers to know at the name of a thing where it is, after the action ids
    where the hand will be, and before each code of an image what will be in its patch.
    """
    language = network.language_model
    width = language.embed_tokens.embedding_dim
    head, moved, seen = (nn.Linear(width, size) for size in (4, 4 * STEPS, SEEN))
    tokens = encoder.tokens
    words = torch.tensor([encoder.text(f" {word}")[0] for word in WORDS])

    def loss(scenes: Scenes) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(HAND, (len(scenes.images), NAMES)).tolist()  # the question has it
        texts = [" ".join(WORDS[number] for number in row) for row in drawn]
        batch = answers(encoder, texts, scenes)
        ids = batch["input_ids"]
        row, at, which = (ids[..., None] == words).nonzero().unbind(1)
        hidden = first_layers(network, 2, batch, scenes)
        named = head(hidden[row, at])
        missed = named[:, :3] - scenes.positions[row, 0, which]
        opening = named[:, 3] - scenes.openings[row, 0]
        total = missed.abs().mean() + opening[which == HAND].abs().mean()
        is_after = (ids == tokens.action_end).cumsum(1) > (ids == tokens.future_start).cumsum(1)
        row, at = is_after.nonzero().unbind(1)
        later = moved(hidden[row, at]).unflatten(-1, (STEPS, 4)) - scenes.hand[row, 1:]
        total = total + later.abs().mean()
        total = total + seen_loss(seen(before_codes(hidden, ids, tokens)), scenes, LATER)[0]
        return total, later[:, -1, :3].norm(dim=-1).mean()

    tower = [value for name, value in network.visual.named_parameters() if "vis_tok" not in name]
    parts = language.embed_tokens, language.layers[:2], head, moved, seen
    parameters = [value for part in parts for value in part.parameters()] + tower
    training.run([value for value in parameters if value.requires_grad], steps, loss)


def learn_answers(
    network: FutureVla, encoder: SequenceEncoder, training: Training, steps: int
) -> None:
    """Trains three layers to know at each token of an answer all that it depends on, and before
    each code what will be in its patch, and where the hand will be.
    """
    language = network.language_model
    width = language.embed_tokens.embedding_dim
    head, moved, seen = (nn.Linear(width, size) for size in (10, 4, SEEN))

    def loss(scenes: Scenes) -> tuple[Tensor, Tensor]:
        count, places = len(scenes.images), scenes.positions[:, 0]
        which = torch.randint(len(world.COLORS), (count,))  # the actions may be for another one
        tasks = [world.instruction_for(world.COLORS[number]) for number in which.tolist()]
        batch = answers(encoder, tasks, scenes)
        hidden = first_layers(network, 3, batch, scenes)
        row, at = ((batch["segments"] == TEXT) | (batch["segments"] == ACTION)).nonzero().unbind(1)
        truth = places[torch.arange(count), which], places[:, BIN]
        wanted = torch.cat([*truth, scenes.hand[:, 0]], dim=-1)
        missed = head(hidden[row, at]) - wanted[row]
        block, rest = missed[:, :3], missed[:, 3:]
        total = block.abs().mean() + REST * rest.abs().mean()
        before = before_codes(hidden, batch["input_ids"], encoder.tokens)
        hand = scenes.hand[torch.arange(count)[:, None], 1 + scenes.shown // VIEWS]
        later = moved(before) - hand[:, :, None]
        total = total + seen_loss(seen(before), scenes, LATER)[0] + later.abs().mean()
        return total, later[..., :3].norm(dim=-1).mean()

    parts = language.embed_tokens, language.layers[:3], head, moved, seen
    parameters = [value for part in parts for value in part.parameters()]
    training.run([value for value in parameters if value.requires_grad], steps, loss)


def main() -> None:
    """Draws scenes, trains part by part, and writes a folder as `vlatool compose` does."""
    parser = argparse.ArgumentParser(description="Weights for a tiny FUTURE-VLA that acts.")
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--fast", type=Path, required=True, help="folder of the action tokenizer")
    parser.add_argument("--scenes", type=int, default=14_000)
    parser.add_argument(
        "--steps", type=int, nargs=3, default=[1_000, 1_000, 1_000], help="of each part"
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
    scenes = random_scenes(arguments.scenes, arguments.seed, dino.patch_size, arguments.fast)
    scenes = Scenes(*(values.to(arguments.device) for values in scenes))
    training = Training(scenes, arguments.batch_size, arguments.lr)
    first, second, third = arguments.steps
    print("DINOv3 learns what is in a patch, and where", flush=True)
    dino.requires_grad_(requires_grad=True)
    learn_to_see(dino, training, first)
    print("two layers learn the words: where the hand will be", flush=True)
    learn_words(network, encoder, training, second)
    print("three layers learn to answer: where the hand will be, before each code", flush=True)
    learn_answers(network, encoder, training, third)
    state = network.cpu().state_dict()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with NULL.progress("write", len(state), "tensors") as bar:
        replace(composition, read=state.__getitem__).write(arguments.output, bar)


if __name__ == "__main__":
    main()
