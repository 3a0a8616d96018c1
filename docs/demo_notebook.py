"""Cells of the notebook of the demo, which site.py builds."""

# %% [markdown]
# # The demo as a notebook
#
# From recorded episodes to a policy that picks up the block that an instruction names. These are
# the steps of `vlatool demo`, one by one in Python: about four minutes on two cores without a GPU.
# Every step can be stopped and run again; what is complete is not repeated.
#
# It needs `pip install 'vlatool[train]' matplotlib`. All files go to the folder `demo-notebook`.

# %%
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from vlatool import load_config, open_dataset, preprocess, rollout, sample, train
from vlatool.config.resolve import Override
from vlatool.evaluation.config import RolloutConfig
from vlatool.training.config import TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig
from vlatool.workflows.sample import SampleConfig

FOLDER = Path("demo-notebook")
EPISODES, STEPS, ROLLOUTS = 200, 5300, 50  # with 4, 4, 2 it only tries every step


def overrides(values: dict[str, Any]) -> list[Override]:
    """Values of keys, which presets are merged with."""
    return [Override(key, value, "notebook") for key, value in values.items()]


# %% [markdown]
# ## 1. Episodes
#
# The built-in world records a gripper that puts a block into a bin, in the raw layout of the public
# LBM recordings: images of the cameras, poses, an instruction.

# %%
sample(SampleConfig(layout="spartan", output=str(FOLDER / "raw"), episodes=EPISODES))

# %% [markdown]
# ## 2. Training data
#
# `preprocess` writes each frame once, in a tar per episode. Training cuts windows from it, around
# each time step.

# %%
paths = {"format": "spartan", "sources": [str(FOLDER / "raw")], "output": str(FOLDER / "data")}
preset = load_config(PreprocessConfig, presets=["world-windows"], overrides=overrides(paths))
print(preprocess(preset.config).text())

# %%
data = open_dataset(str(FOLDER / "data"), image_indices=[0], channels_first=False)
figure, axes = plt.subplots(2, 4, figsize=(10, 5))
for column, index in enumerate(range(0, len(data), max(1, len(data) // 4))[:4]):
    window = data[index]
    for row, camera in enumerate(("scene_right_0", "wrist_right_minus")):
        axes[row, column].imshow(window[f"observation.images.{camera}"][0])
        axes[row, column].axis("off")
    axes[0, column].set_title(window["task"], fontsize=8)
plt.show()

# %% [markdown]
# ## 3. Training
#
# The preset `world-pick` is a small diffusion policy. `vlatool presets show world-pick` prints it.

# %%
keys = {
    "data.dataset_manifest": [str(FOLDER / "data")],
    "save_path": str(FOLDER),
    "name": "run",
    "total_train_steps": STEPS,
}
preset = load_config(TrainConfig, presets=["world-pick"], overrides=overrides(keys))
print(train(preset.config).text())

# %%
rows = [json.loads(line) for line in (FOLDER / "run/metrics.jsonl").read_text().splitlines()]
points = [(row["step"], row["loss"]) for row in rows if "loss" in row]
plt.semilogy(*zip(*points, strict=True))
plt.xlabel("step")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# ## 4. Evaluation
#
# The policy acts from initial states that are not in the training data.

# %%
result = rollout(
    RolloutConfig(
        checkpoint=str(FOLDER / "run"), env="vlatool/PickPlace-v0", episodes=ROLLOUTS, seed=500_000
    )
)
print(result.text())

# %%
if result.picture:
    plt.figure(figsize=(10, 10))
    plt.imshow(plt.imread(result.picture))
    plt.axis("off")
    plt.show()
