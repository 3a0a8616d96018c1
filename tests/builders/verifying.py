"""Verification of small outputs."""

from pathlib import Path
from typing import Any

from vlatool.workflows.verify import VerifyConfig, VerifyResult, verify


def verified(location: Path | str, **options: Any) -> VerifyResult:
    """Result of `verify` with these options."""
    result = verify(VerifyConfig(location=str(location), **options))
    assert isinstance(result, VerifyResult)
    return result
