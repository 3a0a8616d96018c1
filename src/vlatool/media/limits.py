"""Limits of memory, rows and rates for one recording, which are the same for all readers.

A process takes at most 2 GB for a recording, or 2.5 times the largest thing that is stored in it.
Sizes are compared before memory is taken, from what a file declares.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.errors import DataError, UsageError
from vlatool.findings import FindingCodes

MEMORY_VARIABLE = "VLATOOL_MEMORY_GB"  # workers inherit it
MOST_ROWS = 2**22  # of an episode
MOST_EPISODES = 2**20  # of a store or a data set
_DEFAULT_GB = 2.0
_COPIES = 4  # of a thing while it is read: stored, inflated, in another layout, converted
RATES = (1e-3, 1e6)  # frames per second that a robot can have


def most_bytes() -> int:
    """Returns the largest number of bytes that a reader may inflate or fill in at once."""
    text = os.environ.get(MEMORY_VARIABLE, "")
    try:
        gigabytes = float(text or _DEFAULT_GB)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < math.inf:
        raise UsageError(
            f"{MEMORY_VARIABLE} is {text!r}, not a number of gigabytes",
            hint=f"set it to the memory that one process may use, such as {MEMORY_VARIABLE}=8",
            code="usage.bad_value",
        )
    return int(gigabytes * 1e9) // _COPIES


def check_bytes(codes: FindingCodes, path: Path, place: str, size: int, stored: int = 0) -> None:
    """Raises an error if something takes too much memory: `size` bytes, `stored` bytes on disk."""
    if size > max(most_bytes(), stored):
        raise too_large(codes, path, place, size)


def check_numbers(codes: FindingCodes, path: Path, place: str, count: int) -> None:
    """Raises an error if the numbers of an episode take too much memory, twice as float64."""
    check_bytes(codes, path, place, 16 * count)


def too_large(codes: FindingCodes, path: Path, place: str, size: int) -> DataError:
    """Returns the error for `size` bytes; its hint says which limit would allow them."""
    needed = math.ceil(size * _COPIES / 1e9)
    hint = f"leave it out; or, if you have {needed} GB of memory, set {MEMORY_VARIABLE}={needed}"
    reason = f"needs {size:,} bytes at once; the limit is {most_bytes():,}"
    return codes.error("too_large", path, place, reason, hint=hint)


def possible_rate(value: Any) -> float:
    """Returns a frame rate that a file states; 0.0 if no robot can have this rate."""
    if not isinstance(value, int | float | np.number):
        return 0.0
    return float(value) if RATES[0] <= value <= RATES[1] else 0.0
