"""States far outside the training data: said once, counted, and refused on request."""

import urllib.request

import numpy as np
import pytest

import vlatool
from tests.builders.errors import fails
from tests.builders.serving import ORIGIN, LookPolicy, local, look, served
from vlatool.episode import Array
from vlatool.evaluation.policy_runner import PolicyRunner, StateRanges

# A width of 2 and a dimension that never moved, whose width counts as 1.
LOW, HIGH = np.array([-1.0, 1.0]), np.array([1.0, 1.0])


class RangePolicy(LookPolicy):
    """A policy that knows the range of its pose in the training data."""

    def state_range(self, field: str) -> tuple[Array, Array] | None:
        return {"pose": (LOW, HIGH)}.get(field)


@pytest.mark.parametrize(
    ("pose", "is_far"),
    [
        ([0.0, 1.0], False),
        ([2.9, 1.0], False),
        ([3.1, 1.0], True),
        ([-3.1, 1.0], True),
        ([0.0, 1.9], False),
        ([0.0, 2.1], True),
    ],
)
def test_a_state_is_far_when_it_is_a_width_outside_the_range(
    pose: list[float], is_far: bool
) -> None:
    ranges = StateRanges(RangePolicy(), lambda _: None)
    assert ranges.far({"pose": np.array(pose)}) == (["pose"] if is_far else [])


def test_a_field_without_a_known_range_is_never_far() -> None:
    assert StateRanges(LookPolicy(), lambda _: None).far({"pose": np.array([57.0, 1.0])}) == []


def test_a_policy_says_it_once_with_both_ranges(caplog: pytest.LogCaptureFixture) -> None:
    policy = local(RangePolicy())
    for number in (0, 57, 58):
        policy.act(look(number))
    (text,) = [record.message for record in caplog.records]
    assert "57" in text
    assert "-1 .. 1" in text


def test_a_control_loop_counts_the_observations_of_an_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = local(RangePolicy())
    with vlatool.ControlLoop(policy, execute_steps=1) as loop:
        for number in (0, 57, 58):
            loop.step(look(number))
        assert policy.num_far == {"pose": 2}
        loop.reset()
        assert policy.num_far == {}
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 2


def test_a_client_is_told_once_and_counts_as_the_server_does() -> None:
    with served(RangePolicy()) as url, vlatool.connect(url) as client:
        for number in (0, 57, 58):
            client.act(look(number))
        assert client.num_far == {"pose": 2}
        with urllib.request.urlopen(f"{url.replace('ws', 'http', 1)}/metrics") as answer:
            assert 'vlatool_far_states_total{field="pose"} 2' in answer.read().decode()
        client.reset()
        assert client.num_far == {}


def test_a_policy_refuses_a_larger_deviation_on_request() -> None:
    policy = PolicyRunner(RangePolicy(), ORIGIN, 0, max_deviation=27.5)
    policy.act(look(56))
    with fails("data.mismatch", 3) as refused:
        policy.act(look(57))
    assert refused.value.details["field"] == "pose"
    assert policy.num_far == {"pose": 1}


def test_a_server_refuses_a_larger_deviation_on_request() -> None:
    with served(RangePolicy(), max_deviation=27.5) as url, vlatool.connect(url) as client:
        client.act(look(56))
        with fails("data.mismatch", 3):
            client.act(look(57))
