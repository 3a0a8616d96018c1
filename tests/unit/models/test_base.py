"""What a model type must have."""

import pytest

from vlatool.models.base import ModelType, Objective, Policy


@pytest.mark.parametrize(
    ("protocol", "required"),
    [
        (ModelType, {"build", "objective", "batcher", "example"}),
        (Objective, {"optimizers", "loss"}),
        (Policy, {"act"}),
    ],
)
def test_few_methods_are_required_and_a_missing_one_is_named(
    protocol: type, required: set[str]
) -> None:
    class Incomplete(protocol):
        pass

    assert Incomplete.__abstractmethods__ == required
    with pytest.raises(TypeError, match=min(required)):
        Incomplete()
