import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.artifacts.stats.format import merge_stats, read_stats, write_stats
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


def unmergeable(*parts: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        merge_stats(parts)
    return caught.value.code


def test_written_statistics_read_back_equal(tmp_path: Path) -> None:
    stats = stats_of(windows(1))

    write_stats(tmp_path / "stats.json", stats)

    assert read_stats(tmp_path / "stats.json") == stats


def test_statistics_are_written_as_one_line_of_strict_json(tmp_path: Path) -> None:
    write_stats(tmp_path / "stats.json", stats_of(windows(1)))

    (line,) = (tmp_path / "stats.json").read_text().splitlines()
    json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_statistics_that_are_not_json_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_stats(tmp_path / "stats.json", {"a": {"mean": [float("nan")]}})

    assert list(tmp_path.iterdir()) == []


def test_nan_and_infinity_literals_become_null(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"a": {"mean": [NaN, 1.0], "min": [Infinity, -Infinity]}}')

    assert read_stats(tmp_path / "s.json") == {"a": {"mean": [None, 1.0], "min": [None, None]}}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "data.no_statistics"),
        ("{", "data.broken_statistics"),
        ("[]", "data.broken_statistics"),
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


def test_merge_keeps_the_common_fields() -> None:
    first = {**stats_of(windows(1)), **stats_of(windows(2), name="only_here")}

    assert list(merge_stats([first, stats_of(windows(3))])) == ["action"]


def test_merge_accepts_scalar_std_and_null_extremes() -> None:
    first = stats_of(windows(1, samples=1))
    first["action"] |= {"std_per_timestep": 0.0, "min_per_timestep": [[None, None]] * 3}

    merged = merge_stats([first, stats_of(windows(2))])["action"]

    assert merged["min"] == stats_of(windows(2))["action"]["min"]


def test_merge_of_different_window_lengths_is_refused() -> None:
    parts = stats_of(windows(1)), stats_of(windows(1, steps=4))

    assert unmergeable(*parts) == "data.unmergeable_statistics"


def test_merge_without_digest_state_is_refused() -> None:
    second = stats_of(windows(2))
    second["action"]["tdigest_state_per_timestep"] = None

    assert unmergeable(stats_of(windows(1)), second) == "data.unmergeable_statistics"


def test_single_data_set_needs_no_digest_state() -> None:
    stats = {"action": {"mean": [0.0], "tdigest_state_per_timestep": None}}

    assert merge_stats([stats]) == stats
