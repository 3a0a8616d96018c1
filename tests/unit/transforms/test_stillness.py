import numpy as np
import pytest

from vlatool.errors import DataError
from vlatool.transforms.windows import StillnessSpec, Windows, WindowSpec, make_windows, moving_mask

FRAMES = 5


def windows(past: int = 0, future: int = 4) -> Windows:
    """With the default, one window over all 5 frames."""
    right = 0 if future == 4 else FRAMES
    spec = WindowSpec(past, future, max_padding_left=FRAMES, max_padding_right=right)
    return make_windows(FRAMES, spec)


def column(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


# 0 0 0 0 5 has a population standard deviation of exactly 2, a sample deviation of 2.24.
JUMP = column(0, 0, 0, 0, 5)


@pytest.mark.parametrize(("threshold", "moves"), [(1.99, True), (2.0, False), (2.1, False)])
def test_published_threshold_is_strict_and_the_deviation_that_of_the_population(
    threshold: float, moves: bool
) -> None:
    fields = {"robot__actual__x": JUMP}

    assert moving_mask(windows(), fields, StillnessSpec(threshold)).tolist() == [moves]


def test_largest_dimension_of_any_field_decides() -> None:
    fields = {"action": np.hstack([np.zeros((FRAMES, 1)), JUMP, np.zeros((FRAMES, 1))])}

    assert moving_mask(windows(), fields, StillnessSpec(1.9)).all()

    fields = {"action": JUMP, "joint": np.zeros((FRAMES, 1))}

    assert moving_mask(windows(), fields, StillnessSpec(1.9)).all()


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("My_Action", True),
        ("JOINT_1", True),
        ("poses", True),
        ("left_xyz", True),
        ("actual", True),
        ("gripper", False),
        ("state", False),
    ],
)
def test_published_rule_considers_fields_by_their_names(name: str, moves: bool) -> None:
    fields = {name: JUMP, "action": np.zeros((FRAMES, 1))}

    assert moving_mask(windows(), fields, StillnessSpec(0.1)).tolist() == [moves]


def test_text_nan_and_windows_of_one_row_are_still_and_those_without_fields_kept() -> None:
    assert moving_mask(windows(), {"state": np.zeros((FRAMES, 1))}, StillnessSpec()).all()

    fields = {"action_text": np.array(["a", "b", "c", "d", "e"]), "action": np.zeros((FRAMES, 1))}

    assert not moving_mask(windows(), fields, StillnessSpec()).any()

    mask = moving_mask(windows(future=3), {"action": JUMP}, StillnessSpec(0.1))

    assert mask.tolist() == [False, True, True, True, False]

    fields = {"action": np.full((FRAMES, 1), np.nan)}

    assert not moving_mask(windows(), fields, StillnessSpec()).any()


@pytest.mark.parametrize("padding", ["copy", "zero", "reflect"])
def test_padding_does_not_count_as_movement(padding: str) -> None:
    spec = WindowSpec(2, 2, max_padding_left=9, max_padding_right=9, padding=padding)  # pyright: ignore[reportArgumentType] - a row of the table
    fields = {"action": np.full((FRAMES, 1), 7.0)}

    assert not moving_mask(make_windows(FRAMES, spec), fields, StillnessSpec(0.0)).any()


@pytest.mark.parametrize(
    ("threshold", "gripper", "moves"),
    [(4.9, JUMP, True), (5.0, JUMP, False), (0.1, 0 * JUMP, False), (0.1, np.nan * JUMP, True)],
)
def test_range_rule_is_strict_and_ignores_other_fields(
    threshold: float, gripper: np.ndarray, moves: bool
) -> None:
    spec = StillnessSpec(field_thresholds={"gripper": threshold})

    assert moving_mask(windows(), {"gripper": gripper, "action": JUMP}, spec).tolist() == [moves]


@pytest.mark.parametrize("field", ["griper", "words"])
def test_threshold_of_a_field_that_holds_no_numbers_is_refused(field: str) -> None:
    spec = StillnessSpec(field_thresholds={field: 0.1})
    fields = {"gripper": JUMP, "words": np.array(["a"] * FRAMES)}

    with pytest.raises(DataError) as caught:
        moving_mask(windows(), fields, spec)

    assert (caught.value.code, caught.value.details["field"]) == ("data.unknown_field", field)
