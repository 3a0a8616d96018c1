"""Errors that a test expects."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vlatool.errors import VlatoolError


@contextmanager
def fails(code: str, exit_code: int | None = None) -> Iterator[pytest.ExceptionInfo[VlatoolError]]:
    """Expects an error with this code, whose first part is the kind of the error."""
    with pytest.raises(VlatoolError) as caught:
        yield caught
    assert caught.value.code == code
    assert caught.value.kind in ("partial", code.partition(".")[0])
    assert exit_code in (None, caught.value.exit_code)
