"""Dimensions whose ranges a policy cannot learn well are named before training."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.options import DataOptions
from vlatool.loading.robotics.statistics import report_ranges

GOOD = np.sin(np.arange(1000.0))
RARE = np.where(np.arange(1000) % 200, 0.0, 1.0) + 1e-3 * GOOD

HUGE = 1e4 * (RARE - 1e-3 * GOOD) + GOOD


def statistics(*columns: Any) -> dict[str, Any]:
    values = np.stack(columns, axis=1)
    percentiles = {f"percentile_{p}": np.percentile(values, p, axis=0) for p in (1, 5, 95, 99)}
    plain = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0)}
    entry = {**plain, "max": values.max(0), **percentiles}
    return {name: value.tolist() for name, value in entry.items()}


def messages(
    *columns: Any, allow: Sequence[str] = (), data: Any = None, **normalization: Any
) -> dict[str, str]:
    config = RoboticsDataConfig.model_validate(
        {
            "action_fields": ["action"],
            "proprioception_fields": ["state"],
            "normalization": {"method": "percentile_1_99", "scope": "global", **normalization},
            "allow": list(allow),
        }
    )
    names = {"action": [f"arm.joint_{number}" for number in range(len(columns))]}
    info: Any = SimpleNamespace(
        statistics={"action": statistics(*columns), "state": statistics(GOOD)},
        options=DataOptions.parse({"dimension_names": names}),
        fixed_in_some=(),
        data_statistics=data,
    )
    reporter = Recorder()
    report_ranges(config, info, reporter)
    return dict([*reporter.warnings, *(("note", note) for note in reporter.notes)])


@pytest.mark.parametrize(
    ("column", "normalization", "code"),
    [
        pytest.param(GOOD, {}, None, id="good"),
        pytest.param(RARE, {}, "data.narrow_ranges", id="rare motion between percentiles"),
        pytest.param(RARE, {"method": "min_max"}, None, id="rare motion between its factor"),
        pytest.param(1e-5 * GOOD, {"epsilon": 1e-2}, "data.uneven_scales", id="below epsilon"),
        pytest.param(150 * GOOD, {"enabled": False}, "data.uneven_scales", id="not normalized"),
        pytest.param(50 * GOOD, {"enabled": False}, None, id="not normalized, not far"),
        pytest.param(0 * GOOD, {}, "note", id="constant"),
    ],
)
def test_dimension_is_named_by_its_joint(
    column: Any, normalization: dict[str, Any], code: str | None
) -> None:
    texts = messages(GOOD, column, GOOD, **normalization)
    assert list(texts) == ([] if code is None else [code])
    assert all("action: arm.joint_1" in text for text in texts.values())
    assert not any("joint_0" in text or "state" in text for text in texts.values())


def test_field_that_is_constant_as_a_whole_is_named_once() -> None:
    assert messages(0 * GOOD, 0 * GOOD)["note"].endswith("holds them: action")


def test_values_over_1000_after_normalization_are_refused_with_their_share() -> None:
    with fails("data.wide_range") as caught:
        messages(GOOD, HUGE)
    assert caught.value.message.startswith("action: arm.joint_1 reaches")
    assert "at most 2 % of the rows" in caught.value.message


def test_values_of_the_data_count_if_the_weights_bring_the_scale() -> None:
    with fails("data.wide_range"):
        messages(GOOD, data={"action": statistics(1e4 * GOOD)})


def test_values_over_1000_are_a_warning_if_they_are_allowed() -> None:
    assert "data.narrow_ranges" in messages(GOOD, HUGE, allow=["action"])


def test_steps_have_their_own_ranges() -> None:
    stats = {"mean_per_timestep": [[0.0], [0.0]], "std_per_timestep": [[1e-3], [1.0]]}
    bounds = {"min": -1.5, "percentile_1": -1.4, "percentile_99": 1.4, "max": 1.5}
    for name, factor in bounds.items():
        stats[f"{name}_per_timestep"] = [[1e-3 * factor], [factor]]
    config = RoboticsDataConfig.model_validate(
        {"action_fields": ["action"], "normalization": {"scope": "per_timestep"}}
    )
    info: Any = SimpleNamespace(
        statistics={"action": statistics(GOOD) | stats},
        options=DataOptions.parse({}),
        fixed_in_some=(),
        data_statistics=None,
    )
    reporter = Recorder()
    report_ranges(config, info, reporter)
    assert (reporter.warnings, reporter.notes) == ([], [])
