"""The moving picture of README: the policy of `vlatool demo` acts in starts it has never seen.

    vlatool demo --seed 0
    python benchmarks/acting.py demo/run --output docs/acting.webp

The policy gets its own images, 64 x 64, and plans every command; the picture shows the world
larger. Nothing is chosen: the starts are the first ones of the demo's evaluation (seeds 100000 to
100002), one for each instruction, whatever comes of them.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium
from PIL import Image, ImageDraw, ImageFont

from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.controllers import PolicyController
from vlatool.evaluation.environments import with_mapping
from vlatool.evaluation.policy_runner import open_policy
from vlatool.world.registration import ENVIRONMENT, register_environments
from vlatool.world.render import View, cameras_for
from vlatool.world.scene import COLORS, FPS

FIRST_SEED = 100_000
TITLE = 34  # pixels above the views
STILL = 8  # frames for which the end of an episode stays


def main(run: str, output: Path, size: int, quality: int) -> None:
    """Lets the policy act, and writes the picture."""
    config = with_mapping(RolloutConfig(env=ENVIRONMENT))
    policy, _ = open_policy(run, config.weights, config)
    controller = PolicyController(policy, config, ImageSizes(policy.sees, print))
    register_environments()
    env = gymnasium.make(ENVIRONMENT)
    views = [View(camera, (size, size)) for camera in cameras_for(2)]
    frames: list[Image.Image] = []
    for number, color in enumerate(COLORS):
        frames += episode(env, controller, views, FIRST_SEED + number, color)
    first, *rest = frames
    options = {"duration": 1000 // FPS, "loop": 0, "quality": quality, "method": 6}
    first.save(output, save_all=True, append_images=rest, **options)
    print(f"{output}: {len(frames)} frames, {output.stat().st_size / 1000:.0f} kB")


def episode(
    env: Any, controller: PolicyController, views: list[View], seed: int, color: str
) -> list[Image.Image]:
    """Pictures of one episode."""
    seen, _ = env.reset(seed=seed, options={"target": color})
    frames: list[Image.Image] = []
    is_over = False
    while not is_over:
        action = controller.act({seed: seen}, {seed: seen["instruction"]})[seed]
        seen, _, is_done, is_cut, info = env.step(action)
        is_over = is_done or is_cut
        frames.append(picture(env.unwrapped._scene, views, seen["instruction"]))
    print(f"seed {seed}: {seen['instruction']}, {'done' if info['success'] else 'not done'}")
    return [*frames, *[frames[-1]] * STILL]


def picture(scene: Any, views: list[View], title: str) -> Image.Image:
    """The views side by side, below the instruction."""
    height, width = views[0].size
    image = Image.new("RGB", (len(views) * width, TITLE + height), "white")
    ImageDraw.Draw(image).text((10, 6), title, "black", ImageFont.load_default(size=18))
    for number, view in enumerate(views):
        image.paste(Image.fromarray(view.draw(scene)), (number * width, TITLE))
    return image


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--output", type=Path, default=Path("acting.webp"))
    parser.add_argument("--size", type=int, default=340, help="pixels of a side of each view")
    parser.add_argument("--quality", type=int, default=60)
    options = parser.parse_args()
    main(options.run, options.output, options.size, options.quality)
