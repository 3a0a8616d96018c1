"""Registration in Gymnasium, for `gymnasium.make("vlatool/PickPlace-v0")`."""

ENVIRONMENT = "vlatool/PickPlace-v0"


def environment_ids() -> list[str]:
    """Ids of the environments of the world."""
    return [ENVIRONMENT]


def register_environments() -> None:
    """Registers the environments of the world; can be called repeatedly.

    Gymnasium does not load entry points, so callers of `gymnasium.make` must call this first.
    """
    # Imported here, because gymnasium is not a core dependency.
    from gymnasium.envs.registration import register, registry

    from vlatool.world.scene import MAX_STEPS

    if ENVIRONMENT not in registry:
        register(
            id=ENVIRONMENT,
            entry_point="vlatool.world.env:PickPlaceEnv",
            max_episode_steps=MAX_STEPS,
        )
