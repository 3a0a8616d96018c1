"""Weights of every shipped preset for other numbers of processes and sizes of micro-batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.builders.preset_runs import (
    GROUPS,
    PRESETS,
    ROOT,
    SPLITS,
    groups_of,
    train_all,
    write_sources,
)

# Largest difference of a tensor, relative to its largest weight. The rest is rounding: sums of
# other micro-batches have another order.
TOLERANCE = 1e-4
# Weights whose gradient is zero but for rounding: attention does not depend on the bias of keys,
# the hinge loss not on the last bias, which real and reconstructed images have in common.
NO_GRADIENT = ("k_proj.bias", "discriminator.to_logits.2.bias")

# The entropy penalty of its codebook is that of a micro-batch, whose size is part of the run.
BY_MICRO_BATCH = {"future-vla-tiny-stage1", "titok-tiny-stage1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the weights of all presets and splits."""
    root = tmp_path_factory.mktemp("presets")
    write_sources(root)
    (root / GROUPS).write_text(json.dumps(groups_of(root)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, "-m", "tests.builders.preset_runs", str(root)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    train_all(root, 1)
    return root


@pytest.mark.slow
def test_weights_do_not_depend_on_processes_and_micro_batches(runs: Path) -> None:
    groups = json.loads((runs / GROUPS).read_text())
    assert sorted(name for names in groups.values() for name in names) == PRESETS
    whole, *splits = SPLITS
    differing: list[str] = []
    for preset in groups.keys() - BY_MICRO_BATCH:
        expected = load_file(whole.weights_file(runs, preset))
        for split in splits:
            weights = load_file(split.weights_file(runs, preset))
            worst = max(
                (float((weights[name] - value).abs().max() / value.abs().max()), name)
                for name, value in expected.items()
                if not name.endswith(NO_GRADIENT)
            )
            if worst[0] > TOLERANCE:
                differing.append(f"{preset} {split}: {worst}")
    assert not differing, "\n".join(differing)
