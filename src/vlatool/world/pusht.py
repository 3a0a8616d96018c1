"""PushT, the simulator of `gym-pusht`, in which a disc pushes a block to its place.

Source: reference/environments 3.
"""

import os
from importlib import import_module


def environment_ids() -> list[str]:
    return ["gym_pusht/PushT-v0"]


def register_environments() -> None:
    """Registers the environment; can be called repeatedly."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import_module("gym_pusht")
