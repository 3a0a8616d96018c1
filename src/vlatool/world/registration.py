"""Registration in Gymnasium, for `gymnasium.make("vlatool/PickPlace-v0")`."""

ENVIRONMENT = "vlatool/PickPlace-v0"
# The same task with the observations and actions of LIBERO.
LIBERO_ENVIRONMENT = "vlatool/PickPlaceLibero-v0"

_CLASSES = {ENVIRONMENT: "PickPlaceEnv", LIBERO_ENVIRONMENT: "LiberoPickPlaceEnv"}


def environment_ids() -> list[str]:
    return [*_CLASSES]


def register_environments() -> None:
    """Registers the environments once, because Gymnasium loads no entry points."""
    # Imported here, because gymnasium is not a core dependency.
    from gymnasium.envs.registration import register, registry

    from vlatool.world.scene import MAX_STEPS

    for name, cls in _CLASSES.items():
        if name not in registry:
            register(
                id=name,
                entry_point=f"vlatool.world.env:{cls}",
                max_episode_steps=MAX_STEPS,
            )
