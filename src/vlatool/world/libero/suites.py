"""Suites of the LIBERO benchmark and their registration in Gymnasium.

Source: reference/environments 2.
"""

from collections.abc import Mapping
from importlib import import_module

from vlatool.errors import EnvironmentProblem

PREFIX = "libero/"

# Most steps of an episode after those that settle the scene.
SUITES: Mapping[str, int] = {
    "libero_spatial": 250,
    "libero_object": 300,
    "libero_goal": 320,
    "libero_10": 550,
    "libero_90": 450,
}


def environment_ids() -> list[str]:
    return [f"{PREFIX}{suite}" for suite in SUITES]


def register_environments() -> None:
    """Registers an environment for each suite; can be called repeatedly."""
    # Imported here, because they are no dependencies of the core.
    from gymnasium.envs.registration import register, registry

    try:
        import_module("libero.libero")
    except ModuleNotFoundError as error:
        # No extra has it: it pins versions of packages that vlatool cannot use.
        raise EnvironmentProblem(
            f"LIBERO needs the package {error.name!r}, which is not installed",
            hint="install LIBERO here, or serve the policy with `vlatool serve` and run "
            "examples/libero_client.py in an environment that has LIBERO",
            code="environment.missing_dependency",
            details={"package": error.name},
        ) from None
    for suite in SUITES:
        if f"{PREFIX}{suite}" not in registry:
            register(
                id=f"{PREFIX}{suite}",
                entry_point="vlatool.world.libero.env:LiberoEnv",
                kwargs={"suite": suite},
            )
