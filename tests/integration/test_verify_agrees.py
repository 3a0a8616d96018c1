"""Agreement of `verify` and `preprocess` on which episodes are broken."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.builders.broken_sources import (
    LEROBOT_ERRORS,
    LEROBOT_ODDITIES,
    SPARTAN_ERRORS,
    SPARTAN_ODDITIES,
    Make,
)
from tests.builders.preprocessing import has_message_and_hint, options_for
from vlatool.errors import DataError, VlatoolError
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify


def cases(
    expected: set[tuple[int, int]], lerobot: dict[str, Make], spartan: dict[str, Make]
) -> list[object]:
    return [
        pytest.param(expected, name, make, id=f"{name}: {label}")
        for name, table in (("lerobot", lerobot), ("spartan", spartan))
        for label, make in table.items()
    ]


def verified(source: Path) -> int:
    """Exit code of `verify`."""
    try:
        verify(VerifyConfig(location=str(source)))
    except VlatoolError as error:
        return error.exit_code
    return 0


def preprocessed(source: Path, output: Path, name: str) -> int:
    """Exit code of `preprocess`; its error has two lines."""
    tree = options_for(source, output, format=name)
    try:
        preprocess(PreprocessConfig.specialize(tree).model_validate(tree))
    except VlatoolError as error:
        failures = error.details.get("failures", [vars(error)])
        assert all(map(has_message_and_hint, failures)), failures
        return error.exit_code
    return 0


@pytest.mark.parametrize(
    ("expected", "name", "make"),
    [
        *cases({(3, 3), (3, 4)}, LEROBOT_ERRORS, SPARTAN_ERRORS),
        *cases({(0, 0)}, LEROBOT_ODDITIES, SPARTAN_ODDITIES),
    ],
)
def test_what_verify_finds_is_left_out_and_reported_and_nothing_else(
    expected: set[tuple[int, int]], name: str, make: Make, tmp_path: Path
) -> None:
    make(tmp_path / "set")

    codes = verified(tmp_path / "set"), preprocessed(tmp_path / "set", tmp_path / "out", name)

    assert codes in expected
    with suppress(DataError):  # or it is rejected
        inspect(InspectConfig(location=str(tmp_path / "set"), format=name)).text()
