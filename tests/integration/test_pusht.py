"""PushT: the published windows, and the simulator with the names of its demonstrations."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.surface.invoke import run_vlatool
from tests.unit.recordings.test_zarr import PUSHT
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.environments import (
    Call,
    EnvironmentMaker,
    LocalEnvironments,
    Start,
    with_mapping,
)

ID = "gym_pusht/PushT-v0"


@pytest.mark.skipif(not PUSHT.exists(), reason="the public recordings are not here")
def test_windows_are_as_many_as_the_published_program_has(tmp_path: Path) -> None:
    form = ["--preset", "pusht-windows", "--sink", "lbm", "--fps", "10", "--episodes", "0:20"]
    words = ["preprocess", "zarr", str(PUSHT), "-o", str(tmp_path / "out"), *form, "--json"]
    code, text = run_vlatool(*words)
    stops = zarr.open(str(PUSHT), mode="r")["meta/episode_ends"]
    # An episode of n rows has n + 1 + 7 - 15 windows; all 206 have 24,208.
    assert (code, json.loads(text)["samples"]) == (0, stops[19] - 20 * 7)


def test_the_simulator_observes_what_its_demonstrations_have() -> None:
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    mapped = with_mapping(RolloutConfig(env=ID))
    assert [part.field for part in mapped.action] == ["action"]
    with LocalEnvironments() as environments:
        maker = EnvironmentMaker(ID)
        starts = [Call(slot, Start(maker, seed)) for slot, seed in ((0, 7), (1, 7), (2, 8))]
        replies = environments.call(starts)
        states = [replies[slot].observation[mapped.fields["state"].key or ""] for slot in range(3)]
        assert states[0].shape == (5,)
        np.testing.assert_array_equal(states[0], states[1])
        assert not np.array_equal(states[0], states[2])
        reply = environments.call([Call(0, action=states[0][:2].astype(np.float32))])[0]
        assert 0.0 <= reply.reward <= 1.0
        assert reply.info["is_success"] in (False, np.False_)
