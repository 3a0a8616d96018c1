"""Meta-World for tests, where it is installed and this machine can render."""

import numpy as np
import pytest

from vlatool.errors import EnvironmentProblem
from vlatool.world.metaworld.simulator import Simulator


def simulator_or_skip(task: str, size: tuple[int, int]) -> Simulator:
    """A started simulator that has rendered; skips the test without Meta-World or rendering."""
    try:
        simulator = Simulator(task, size)
        simulator.start(np.random.default_rng(0))
        simulator.images()
    except ModuleNotFoundError:
        pytest.skip("the extra sim is not installed")
    except EnvironmentProblem as error:
        pytest.skip(error.message)
    return simulator


def skip_without_metaworld() -> None:
    """Skips the test where Meta-World is not installed or cannot render."""
    simulator_or_skip("reach-v3", (16, 16)).close()
