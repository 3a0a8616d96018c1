"""Statistics of LeRobot data sets. Source: formats/lerobot 9."""

import numpy as np
import pytest

from vlatool.recordings.lerobot import output


def test_columns_have_exact_statistics_without_rows_that_are_not_finite() -> None:
    rng = np.random.default_rng(0)
    state, flag = rng.normal(size=(50, 3)), rng.normal(size=(50, 1))
    state[4, 1] = np.nan
    entries = dict(
        output.column_entries(output.rows_statistics([state, flag]), {"state": 3, "flag": 1})
    )
    finite = np.delete(state, 4, axis=0)
    for name, share in output.QUANTILES.items():
        assert np.allclose(entries["state"][name], np.quantile(finite, share, axis=0))
    assert np.allclose(entries["flag"]["std"], flag.std(axis=0))
    assert (entries["state"]["count"], entries["flag"]["count"]) == ([49], [50])


def test_images_of_two_episodes_have_the_statistics_of_all() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), np.uint8)
    parts = [output.ImageStatistics(), output.ImageStatistics()]
    for number, image in enumerate(images):
        parts[number // 4].add(image)
    entry = output.merged_images([output.entry_values(part.entry()) for part in parts])
    pixels = images.reshape(-1, 3) / 255.0
    for name, value in (("mean", pixels.mean(axis=0)), ("std", pixels.std(axis=0))):
        assert np.allclose(np.ravel(entry[name]), value)
    assert np.ravel(entry["min"]).tolist() == pixels.min(axis=0).tolist()
    assert (np.shape(entry["q50"]), entry["count"]) == ((3, 1, 1), [6])


@pytest.mark.parametrize("change", [{"mean": None}, {"std": [1.0]}, {"count": [0]}, {"min": "x"}])
def test_incomplete_statistics_of_a_camera_are_not_taken_over(change: dict[str, object]) -> None:
    statistics = output.ImageStatistics()
    statistics.add(np.zeros((4, 4, 3), np.uint8))
    entry = statistics.entry()
    assert output.camera_entry(entry) == entry
    assert output.camera_entry({**entry, **change}) is None


def test_published_statistics_of_a_camera_get_one_shape() -> None:
    numbers = {name: [0, 1, 1] for name in ("min", "max", "mean", "std", "q50")}
    entry = output.camera_entry({**numbers, "q01": [0.5], "count": 7, "other": [1.0]})
    assert entry == {name: [[[0.0]], [[1.0]], [[1.0]]] for name in numbers} | {"count": [7]}
