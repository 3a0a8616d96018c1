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


def cases(lerobot: dict[str, Make], spartan: dict[str, Make]) -> list[object]:
    return [
        pytest.param(name, make, id=f"{name}: {label}")
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


@pytest.mark.parametrize(("name", "make"), cases(LEROBOT_ERRORS, SPARTAN_ERRORS))
def test_errors_of_verify_are_left_out_and_reported(name: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path / "set")

    codes = verified(tmp_path / "set"), preprocessed(tmp_path / "set", tmp_path / "out", name)

    assert codes in {(3, 3), (3, 4)}


@pytest.mark.parametrize(("name", "make"), cases(LEROBOT_ODDITIES, SPARTAN_ODDITIES))
def test_data_without_errors_of_verify_is_used(name: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path / "set")

    codes = verified(tmp_path / "set"), preprocessed(tmp_path / "set", tmp_path / "out", name)

    assert codes == (0, 0)


@pytest.mark.parametrize(
    ("name", "make"),
    cases({**LEROBOT_ERRORS, **LEROBOT_ODDITIES}, {**SPARTAN_ERRORS, **SPARTAN_ODDITIES}),
)
def test_broken_source_is_inspected_or_rejected(name: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path / "set")
    with suppress(DataError):
        inspect(InspectConfig(location=str(tmp_path / "set"), format=name)).text()
