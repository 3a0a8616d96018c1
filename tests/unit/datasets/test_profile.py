from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.datasets.samples.profile import (
    NAME,
    NormalizationProfile,
    check_same_profile,
    compute_profile,
    held_dimensions,
    parse_profile,
    profile_names,
    read_profile,
    write_profile,
)
from vlatool.errors import DataError, UsageError, VlatoolError

# Source: reference/future-vla 4.1.
MEAN = [
    0.06278137117624283,
    0.0868409126996994,
    -0.09037282317876816,
    0.0005407406715676188,
    0.005643361248075962,
    -0.005229088477790356,
    -0.04964079707860947,
]
SPREAD = [0.3355240226, 0.3784470558, 0.4447283745, 0.1962175779, 0.3169656545, 0.3898516297]
PLAIN = NormalizationProfile("plain", (1.0, 2.0), (2.0, 4.0))


def error_of(work: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(VlatoolError) as caught:
        work()
    assert caught.value.hint
    return caught.value.code, caught.value.exit_code


def test_libero_has_the_published_numbers() -> None:
    libero = read_profile("libero")

    np.testing.assert_array_equal(libero.center, np.array([*MEAN[:6], 0], np.float32))
    np.testing.assert_allclose(libero.scale, [*SPREAD, 1], rtol=1e-9 + 2**-24)
    assert libero.center.dtype == libero.scale.dtype == np.float32

    libero = read_profile("libero", "normalised")

    assert libero.center[-1] == np.float32(MEAN[-1])
    assert libero.scale[-1] == np.float32(0.9987710118293762)


def test_normalizing_is_exact_in_float32_and_of_one_width() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    libero = read_profile("libero")

    normalized = libero.normalize(rows)

    assert normalized.dtype == np.float32
    np.testing.assert_array_equal(normalized, (rows - libero.center) / libero.scale)
    np.testing.assert_array_equal(
        libero.denormalize(normalized), normalized * libero.scale + libero.center
    )

    with pytest.raises(ValueError, match="7"):
        read_profile("libero").normalize(np.zeros((16, 6)))


def test_every_shipped_profile_reads() -> None:
    assert "libero" in profile_names()
    assert [read_profile(name).name for name in profile_names()] == profile_names()


def test_written_files_and_documents_of_manifests_are_read_back(tmp_path: Path) -> None:
    write_profile(tmp_path / NAME, read_profile("libero"))

    assert read_profile(str(tmp_path)) == read_profile("libero")
    assert read_profile(str(tmp_path / NAME)) == read_profile("libero")
    assert parse_profile(PLAIN.document(), "manifest") == PLAIN


def test_the_digest_is_that_of_the_numbers() -> None:
    assert NormalizationProfile("other", (1.0, 2.0), (1.0, 2.0), (2.0, 2.0)).digest == PLAIN.digest
    assert read_profile("libero").digest != read_profile("libero", "normalised").digest


def test_profiles_that_differ_but_in_name_are_refused_with_the_dimension() -> None:
    check_same_profile(PLAIN, NormalizationProfile("other", PLAIN.mean, PLAIN.std))
    with pytest.raises(DataError, match="gripper") as caught:
        check_same_profile(read_profile("libero"), read_profile("libero", "normalised"))

    assert (caught.value.code, caught.value.exit_code) == ("data.mismatch", 3)
    assert all("gripper" in difference for difference in caught.value.details["differences"])
    code = error_of(lambda: check_same_profile(PLAIN, read_profile("libero")))
    assert code == ("data.mismatch", 3)


def test_an_unknown_name_and_a_missing_gripper_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_profile("liberro")
    assert caught.value.code == "usage.unknown_name"
    assert "libero" in caught.value.hint
    write_profile(tmp_path / NAME, PLAIN)
    code = error_of(lambda: read_profile(str(tmp_path), "normalised"))
    assert code == ("usage.unsupported", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": None},
        {"mean": []},
        {"mean": ["1", "2"]},
        {"mean": [1, True]},
        {"mean": [1, float("nan")]},
        {"mean": [1, 10**400]},
        {"mean": [1, 2, 3]},
        {"std": [1, 0]},
        {"std": [1, -1]},
        {"std": [1, 1e-60]},
        {"factors": [1]},
        {"factors": [1, 1e39]},
        {"raw": ["2"]},
        {"raw": "0"},
        {"dimensions": ["a", "a"]},
        {"name": ""},
        {"scale": 3},
    ],
)
def test_a_broken_profile_is_refused(changes: dict[str, Any]) -> None:
    document = {**PLAIN.document(), **changes}

    assert error_of(lambda: parse_profile(document, "x")) == ("data.broken", 3)


@pytest.mark.parametrize("text", ["", "[1]", "{", "name: x\nmean: [1"])
def test_a_file_without_a_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)

    assert error_of(lambda: read_profile(str(tmp_path))) == ("data.broken", 3)


def test_a_computed_profile_has_mean_and_deviation_of_the_rows_or_one_if_nothing_changes() -> None:
    rows = np.random.default_rng(1).normal(3, 2, (50, 2)).astype(np.float32)

    profile = compute_profile("mine", rows)

    np.testing.assert_allclose(profile.mean, rows.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(profile.std, rows.astype(np.float64).std(axis=0))
    still = np.array([[1000.0, 0.0], [1000.0005, 1.0]])
    assert compute_profile("mine", still).std == (1.0, 0.5)


def test_a_dimension_that_never_moved_in_any_data_set_is_held_at_its_value() -> None:
    one = np.array([[0.1, 1.0, 2.0], [0.1, 1.0 + 1e-9, 2.0]])
    other = np.array([[0.1, 1.0, 2.5], [0.1, 1.0, 2.5]])
    ranges = [(one[0], one[1]), (other[0], other[1])]
    held = held_dimensions(["fixed", "rounded", "elsewhere"], ranges)
    assert held == {"fixed": 0.1, "rounded": pytest.approx(1.0, abs=1e-8)}


def test_a_held_dimension_is_commanded_exactly_and_survives_a_file(tmp_path: Path) -> None:
    profile = replace(PLAIN, dimensions=("x", "gripper"), held={"gripper": 0.1})
    assert profile.digest == PLAIN.digest
    write_profile(tmp_path / NAME, profile)
    actions = read_profile(str(tmp_path)).denormalize([[0.5, 9.0]])
    assert actions.tolist() == [[2.0, 0.1]]
