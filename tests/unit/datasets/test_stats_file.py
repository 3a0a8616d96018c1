import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.datasets.stats.layout import merge_stats, read_stats, write_stats
from vlatool.errors import DataError
from vlatool.transforms.statistics import WindowStatistics, summary, window_statistics


def of(values: np.ndarray, valid: np.ndarray) -> WindowStatistics:
    return window_statistics([values], valid)


def windows(seed: int, samples: int = 30, steps: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(seed, 2, (samples, steps, 2)), rng.random((samples, steps)) > 0.2


def stats_of(*parts: tuple[np.ndarray, np.ndarray], name: str = "action") -> dict[str, Any]:
    values, valid = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {name: summary(of(values, valid))}


def test_statistics_are_written_as_one_line_of_strict_json_and_read_back(tmp_path: Path) -> None:
    stats, path = stats_of(windows(1)), tmp_path / "stats.json"
    with pytest.raises(ValueError, match="JSON"):
        write_stats(path, {"a": {"mean": [float("nan")]}})
    assert list(tmp_path.iterdir()) == []

    write_stats(path, stats)
    (line,) = path.read_text().splitlines()
    json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert read_stats(path) == stats


def test_nan_and_infinity_literals_become_null(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"a": {"mean": [NaN, 1.0], "min": [Infinity, -Infinity]}}')

    assert read_stats(tmp_path / "s.json") == {"a": {"mean": [None, 1.0], "min": [None, None]}}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "data.missing"),
        ("{", "data.broken"),
        ("[]", "data.broken"),
    ],
)
def test_file_that_holds_no_statistics_is_refused(
    tmp_path: Path, content: str | None, code: str
) -> None:
    if content is not None:
        (tmp_path / "s.json").write_text(content)

    with pytest.raises(DataError) as caught:
        read_stats(tmp_path / "s.json")

    assert caught.value.code == code


def test_merge_of_two_data_sets_equals_statistics_of_the_union() -> None:
    first, second = windows(1), windows(7, samples=50)

    merged = merge_stats([stats_of(first), stats_of(second)])["action"]

    expected = stats_of(first, second)["action"]
    for key in expected.keys() - {"tdigest_state", "tdigest_state_per_timestep"}:
        np.testing.assert_allclose(merged[key], expected[key], rtol=1e-9, err_msg=key)


def test_merge_accepts_scalar_std_and_null_extremes() -> None:
    first = stats_of(windows(1, samples=1))
    first["action"] |= {"std_per_timestep": 0.0, "min_per_timestep": [[None, None]] * 3}

    merged = merge_stats([first, stats_of(windows(2))])["action"]

    assert merged["min"] == stats_of(windows(2))["action"]["min"]


def test_merge_needs_digest_states_unless_the_data_set_is_single() -> None:
    single = {"action": {"mean": [0.0], "tdigest_state_per_timestep": None}}
    assert merge_stats([single]) == single
    second = stats_of(windows(2))
    second["action"]["tdigest_state_per_timestep"] = None
    with pytest.raises(DataError) as caught:
        merge_stats([stats_of(windows(1)), second])
    assert caught.value.code == "data.mismatch"
