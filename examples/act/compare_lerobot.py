"""Compares vlatool-act with LeRobot: actions and losses of the same random weights.

    python compare_lerobot.py write DIR     # where lerobot is installed, 0.3 or 0.4
    python compare_lerobot.py read DIR      # where vlatool and vlatool-act are

The two need not share an environment. `write` makes three policies with random weights and random
statistics, and records what LeRobot does with random observations; `read` opens the folders as
`vlatool serve` does and prints the largest difference. No model is downloaded.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

CAMERAS = ("front", "wrist")
HEIGHT, WIDTH = 96, 128
STATE_DIM, ACTION_DIM, CHUNK = 7, 6, 20
BATCH = 4
# Policies by name: what differs from the published configuration.
CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "pre_norm": {
        "pre_norm": True,
        "feedforward_activation": "gelu",
        "n_decoder_layers": 2,
        "normalization": {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    },
    "without_vae": {
        "use_vae": False,
        "normalization": {"VISUAL": "MIN_MAX", "STATE": "IDENTITY", "ACTION": "MEAN_STD"},
    },
}


def write(folder: Path) -> None:
    """Writes the policies of LeRobot, and its answers."""
    for number, (name, changes) in enumerate(CASES.items()):
        torch.manual_seed(number)
        policy, statistics = make_policy(dict(changes))
        save = folder / name
        policy.save_pretrained(save)
        batch = random_batch(statistics)
        answers = run_lerobot(policy, statistics, batch, save)
        recorded: Any = {**batch, **answers}
        np.savez(folder / f"{name}.npz", **recorded)
        print(f"{save}: written")


def make_policy(changes: dict[str, Any]) -> tuple[Any, dict[str, dict[str, torch.Tensor]]]:
    """A policy of LeRobot with random weights, and random statistics."""
    import inspect

    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    modes = changes.pop("normalization", dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD"))
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,))}
    statistics = {
        "observation.state": random_statistics((STATE_DIM,)),
        # A scaled action that never changes is -1 in LeRobot, and 0 in vlatool: another loss.
        "action": random_statistics((ACTION_DIM,), moves=modes["ACTION"] == "MIN_MAX"),
    }
    for camera in CAMERAS:
        key = f"observation.images.{camera}"
        inputs[key] = PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
        statistics[key] = random_statistics((3, 1, 1))
    config = ACTConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        normalization_mapping={kind: NormalizationMode(mode) for kind, mode in modes.items()},
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        pretrained_backbone_weights=None,
        dropout=0.0,  # so that losses can be compared
        device="cpu",
        **changes,
    )
    if "dataset_stats" in inspect.signature(ACTPolicy.__init__).parameters:
        policy = ACTPolicy(config, dataset_stats=statistics)
    else:
        policy = ACTPolicy(config)
    for key, value in policy.named_buffers():  # a frozen batch norm begins as the identity
        if "bn" in key or "downsample" in key:
            value.copy_(0.5 + torch.rand_like(value))
    return policy, statistics


def random_statistics(shape: tuple[int, ...], *, moves: bool = False) -> dict[str, torch.Tensor]:
    """Statistics of a feature; the last number of an action or a state never changes."""
    low = torch.rand(shape) - 0.5
    high = low + 0.5 + torch.rand(shape)
    std = 0.1 + torch.rand(shape)
    if len(shape) == 1 and not moves:
        high[-1] = low[-1]
        std[-1] = 0.0
    return {"min": low, "max": high, "mean": (low + high) / 2, "std": std}


def random_batch(statistics: dict[str, dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Observations, and recorded actions of which some are after the end of the episode."""
    batch: dict[str, Any] = {}
    for camera in CAMERAS:
        batch[camera] = torch.randint(0, 256, (BATCH, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    for name, shape in (("state", (BATCH, STATE_DIM)), ("actions", (BATCH, CHUNK, ACTION_DIM))):
        entry = statistics["observation.state" if name == "state" else "action"]
        share = torch.rand(shape)
        batch[name] = entry["min"] + share * (entry["max"] - entry["min"])
    lengths = torch.randint(1, CHUNK + 1, (BATCH, 1))
    batch["is_pad"] = torch.arange(CHUNK) >= lengths
    return {name: value.numpy() for name, value in batch.items()}


def run_lerobot(
    policy: Any, statistics: Any, batch: dict[str, np.ndarray], save: Path
) -> dict[str, np.ndarray]:
    """Chunks in physical units, the first action that is executed, and the losses of training."""
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    observation = {"observation.state": tensors["state"]}
    for camera in CAMERAS:
        pixels = tensors[camera].permute(0, 3, 1, 2).float() / 255
        observation[f"observation.images.{camera}"] = pixels
    recorded = {**observation, "action": tensors["actions"], "action_is_pad": tensors["is_pad"]}

    def unchanged(values: Any) -> Any:
        return values

    before = after = unchanged  # LeRobot 0.3 scales within the policy
    if not hasattr(policy, "normalize_inputs"):
        from lerobot.policies.act.processor_act import make_act_pre_post_processors

        before, after = make_act_pre_post_processors(policy.config, statistics)
        before.save_pretrained(save)
        after.save_pretrained(save)
    policy.eval()
    chunk = after(policy.predict_action_chunk(before(dict(observation))))
    policy.reset()
    first = after(policy.select_action(before(dict(observation))))
    policy.train()
    torch.manual_seed(7)
    noise = torch.randn(BATCH, policy.config.latent_dim)
    torch.manual_seed(7)
    with torch.no_grad():
        _, losses = policy.forward(before(recorded))
    return {
        "chunk": chunk.detach().numpy(),
        "first": first.detach().numpy(),
        "noise": noise.numpy(),
        "l1": np.array(losses["l1_loss"]),
        "kl": np.array(losses.get("kld_loss", 0.0)),
    }


def read(folder: Path) -> None:
    """Opens the policies with vlatool and prints how far its answers are from those of LeRobot."""
    for name in CASES:
        with np.load(folder / f"{name}.npz") as file:
            stored = dict(file)
        chunk, losses = run_vlatool(folder / name, stored)
        actions = np.abs(chunk - stored["chunk"]).max()
        first = np.abs(chunk[:, 0] - stored["first"]).max()
        print(f"{name}: actions up to {np.abs(chunk).max():.3f} differ by at most {actions:.1e}")
        print(f"    the first, which LeRobot executes, by {first:.1e}")
        for key, value in losses.items():
            print(f"    {key} {value:.6f} by {abs(value - stored[key]):.1e}")


def run_vlatool(save: Path, stored: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
    """Chunks and losses of a folder of LeRobot, by the road of `vlatool serve`."""
    from vlatool_act.training import ActObjective

    from vlatool.episode import Observation
    from vlatool.models.trained import open_trained

    trained = open_trained(str(save), device="cpu")
    policy = trained.policy()
    observations = []
    for row in range(BATCH):
        images = {camera: stored[camera][row][None] for camera in CAMERAS}
        observations.append(Observation(images, {"observation.state": stored["state"][row][None]}))
    chunk = policy.act(observations, seeds=[0] * BATCH)["action"]
    normalizer = trained.assets.normalizer
    state = normalizer.normalize("observation.state", stored["state"][:, None])[:, 0]
    batch = {
        "images": torch.from_numpy(np.stack([stored[camera] for camera in CAMERAS], axis=1)),
        "state": torch.from_numpy(state),
        "actions": torch.from_numpy(normalizer.normalize("action", stored["actions"])),
        "is_real": torch.from_numpy(~stored["is_pad"]),
    }
    batch["images"] = batch["images"].permute(0, 1, 4, 2, 3)
    noise = torch.from_numpy(stored["noise"])
    ctx: Any = SimpleNamespace(
        parts=trained.parts, rng=SimpleNamespace(normal=lambda *shape: noise)
    )
    model: Any = trained.config.model
    with torch.no_grad():
        loss = ActObjective(model).loss("main", batch, ctx)
    return chunk, {name: float(total) / BATCH for name, total in loss.sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("write", "read"), help="which program runs")
    parser.add_argument("folder", type=Path, help="folder of the policies and answers")
    arguments = parser.parse_args()
    if arguments.side == "write":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        write(arguments.folder)
    else:
        read(arguments.folder)


if __name__ == "__main__":
    main()
