"""Checks of a model type, whose contract is `models.base.ModelType`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlatool.testing.readers import config_section


def check_model_type(
    model_type_class: Any,
    config: Mapping[str, Any] | None = None,
    *,
    data: str | Path | Mapping[str, Any] | None = None,
    init_from: str | Path | None = None,
) -> None:
    """Checks the contract of a model type with short runs: training, checkpoints, resume, policy.

    Args:
        model_type_class: The class that the entry point names.
        config: Config keys that differ from the defaults. Choose a tiny network, and let every
            optimizer start before step 3.
        data: A small folder for the first data kind of the model type, or keys of the data
            section, with `type` for another kind. None: a few samples of the built-in world, for
            a model type with robotics data.
        init_from: Initial weights, for a model type that needs them. They must have the
            architecture of a tiny network.
    """
    model_type = model_type_class()
    plugin_modules = [target.partition(":")[0] for target in model_type.kinds if ":" in target]
    for module in dict.fromkeys([model_type_class.__module__, *plugin_modules]):
        _check_light_import(module)
    # Both import torch, which checks of formats and sinks do not need.
    from vlatool.testing.model_rules import check_config
    from vlatool.testing.model_runs import ModelChecks

    with tempfile.TemporaryDirectory() as folder:
        section = config_section(model_type_class, config)
        derived, info = check_config(model_type, section, data, Path(folder), init_from)
        ModelChecks(derived, info, Path(folder)).check()


def _check_light_import(module: str) -> None:
    """Checks that a module imports no torch; in a new process, as this one may have torch."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    completed = subprocess.run([sys.executable, "-c", program], env=env, check=False)  # noqa: S603 - our own interpreter
    assert completed.returncode == 0, (
        f"importing {module} fails, or imports torch: import torch inside methods"
    )


def check_policy(policy: Any) -> None:
    """Checks the contract of a policy, `models.policy.Policy`, on made-up observations."""
    # Imports torch, which checks of formats and sinks do not need.
    from vlatool.testing.policies import check_acting

    check_acting(policy)
