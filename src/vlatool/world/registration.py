"""Names the world for Gymnasium: `gymnasium.make("vlatool/PickPlace-v0")` after one call."""

ENVIRONMENT = "vlatool/PickPlace-v0"


def register_environments() -> None:
    """Registers the world's environments; safe to call again.

    Gymnasium no longer looks for entry points, so whoever makes the environment calls this first.
    """
    # Inside the call: the core installs without gymnasium.
    from gymnasium.envs.registration import register, registry

    from vlatool.world.scene import MAX_STEPS

    if ENVIRONMENT not in registry:
        register(
            id=ENVIRONMENT,
            entry_point="vlatool.world.env:PickPlaceEnv",
            max_episode_steps=MAX_STEPS,
        )
