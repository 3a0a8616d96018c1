"""Verification of small outputs."""

from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.workflows.verify import VerifyConfig, VerifyResult, verify


def verified(location: Path | str, **options: Any) -> VerifyResult:
    """Result that was returned or is attached to the error."""
    try:
        result = verify(VerifyConfig(location=str(location), **options))
    except DataError as error:
        result = error.result
    assert isinstance(result, VerifyResult)
    return result
