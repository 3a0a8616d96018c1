"""Tasks of Meta-World with our instructions, and their registration in Gymnasium.

Needs no package of the simulator. Source: reference/environments 1.
"""

from collections.abc import Mapping, Sequence

from vlatool.errors import UsageError
from vlatool.plugins import did_you_mean

PREFIX = "metaworld/"
# Meta-World ends an episode after this number of steps.
MAX_STEPS = 500

# Meta-World has no language: the sentences are ours.
INSTRUCTIONS: Mapping[str, str] = {
    "assembly-v3": "pick up the nut and place it onto the peg",
    "basketball-v3": "dunk the basketball into the basket",
    "bin-picking-v3": "grasp the puck and move it from one bin to the other",
    "box-close-v3": "grasp the cover and close the box with it",
    "button-press-topdown-v3": "press the button from the top",
    "button-press-topdown-wall-v3": "bypass the wall and press the button from the top",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "bypass the wall and press the button",
    "coffee-button-v3": "push the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "pick the nut off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door by turning the lock",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door by turning the lock",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet clockwise",
    "faucet-open-v3": "turn the faucet counterclockwise",
    "hammer-v3": "hammer the screw into the wall",
    "hand-insert-v3": "insert the gripper into the hole",
    "handle-press-side-v3": "press the handle down sideways",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up sideways",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg sideways",
    "peg-unplug-side-v3": "unplug the peg sideways",
    "pick-out-of-hole-v3": "pick the puck out of the hole",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "pick-place-wall-v3": "pick up the puck, bypass the wall and place it at the goal",
    "plate-slide-back-side-v3": "slide the plate out of the cabinet sideways",
    "plate-slide-back-v3": "slide the plate out of the cabinet",
    "plate-slide-side-v3": "slide the plate into the cabinet sideways",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "bypass the wall and push the puck to the goal",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "bypass the wall and reach the goal",
    "shelf-place-v3": "pick up the puck and place it on the shelf",
    "soccer-v3": "kick the ball into the goal",
    "stick-pull-v3": "grasp the stick and pull the box with it",
    "stick-push-v3": "grasp the stick and push the box with it",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises UsageError if Meta-World has no task of a name."""
    for task in tasks:
        if task not in INSTRUCTIONS:
            raise UsageError(
                f"--task {task}: Meta-World has no such task",
                hint=did_you_mean(task, [*INSTRUCTIONS]),
                code="usage.unknown_task",
                details={"task": task, "known": [*INSTRUCTIONS]},
            )


def environment_ids() -> list[str]:
    """Ids of the environments of Meta-World."""
    return [f"{PREFIX}{task}" for task in INSTRUCTIONS]


def register_environments() -> None:
    """Registers an environment for each task; can be called repeatedly."""
    # Imported here, because they are no core dependencies.
    from gymnasium.envs.registration import register, registry

    from vlatool.world.metaworld.simulator import load_simulator

    load_simulator()
    for task in INSTRUCTIONS:
        if f"{PREFIX}{task}" not in registry:
            register(
                id=f"{PREFIX}{task}",
                entry_point="vlatool.world.metaworld.env:MetaWorldEnv",
                kwargs={"task": task},
                max_episode_steps=MAX_STEPS,
            )
