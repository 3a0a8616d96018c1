"""Success of ACT of lerobot in the built-in world, from 67 recordings of the red block.

ACT reads no instruction, so it is trained on and measured at one goal.
python -P benchmarks/act_world.py train DATA RUN, then: eval RUN [STARTS]. DATA: `vlatool sample
spartan raw --episodes 200`, `vlatool preprocess spartan raw --preset world-windows --output DATA`.
"""

import sys
from pathlib import Path
from typing import Any

from vlatool.config.resolve import Override, load_config
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.controllers import PolicyController
from vlatool.evaluation.environments import LocalEnvironments, environment_maker, with_mapping
from vlatool.evaluation.policy_runner import open_policy
from vlatool.evaluation.rollouts import RolloutPlan, RolloutProgress, Rollouts, run_rollouts
from vlatool.events import NULL
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import train
from vlatool.world.registration import ENVIRONMENT

FIRST_SEED = 500_000
RIGHT = "poses__right::panda__xyz"
HAND = "grippers__right::panda_hand"
POLICY = {
    "pretrained_backbone_weights": None,
    "chunk_size": 16,
    "n_action_steps": 16,
    "dim_model": 128,
    "n_heads": 4,
    "dim_feedforward": 512,
    "n_encoder_layers": 2,
    "n_vae_encoder_layers": 2,
    "latent_dim": 16,
    "kl_weight": 1.0,
}


def train_run(data: str, output: Path) -> None:
    keys: dict[str, Any] = {
        "model.type": "lerobot",
        "model.policy": "act",
        "model.config": POLICY,
        "data.dataset_manifest": data,
        "data.episodes": ",".join(map(str, range(0, 200, 3))),  # the goals take turns
        "data.allow_multiple_epochs": True,
        "data.camera_names": ["scene_right_0", "wrist_right_minus"],
        "data.proprioception_fields": [f"robot__actual__{RIGHT}", f"robot__actual__{HAND}"],
        "data.action_fields": [f"robot__action__{RIGHT}_relative", f"robot__action__{HAND}"],
        "hparams.lr": 1e-4,
        "hparams.global_batch_size": 16,
        "hparams.lr_scheduler": "cosine",
        "hparams.warmup": 200,
        "total_train_steps": 4000,
        "save_path": str(output.parent),
        "name": output.name,
    }
    overrides = [Override(key, value, "benchmark") for key, value in keys.items()]
    train(load_config(TrainConfig, overrides=overrides).config)


def roll_out(run: str, starts: int) -> None:
    settings = with_mapping(RolloutConfig(env=ENVIRONMENT, seed=FIRST_SEED))
    policy, _ = open_policy(run, settings.weights, settings)
    sizes = ImageSizes(policy.sees, print)
    plan = RolloutPlan(
        range(FIRST_SEED, FIRST_SEED + starts),
        lambda observation, _: str(observation["instruction"]),
        "success",
        options=lambda _: {"target": "red"},
    )
    with NULL.progress("rollouts", starts, "episodes") as bar, LocalEnvironments() as environments:
        info = environments.info(environment_maker(settings))
        progress = RolloutProgress(bar)
        rollouts = run_rollouts(
            Rollouts(
                environments,
                info,
                lambda _: PolicyController(policy, settings, sizes),
                plan,
                progress,
            )
        )
    print(f"{run}: {sum(rollout.success for rollout in rollouts)} of {len(rollouts)}")


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--help"]):
        print(__doc__)
    elif sys.argv[1] == "train":
        train_run(sys.argv[2], Path(sys.argv[3]))
    else:
        roll_out(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 50)
