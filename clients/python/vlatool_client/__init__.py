"""Client of `vlatool serve` for the computer of a robot: `connect` and `ControlLoop`.

Needs numpy, msgpack and websockets only, on Python 3.8 or newer.
"""

from .errors import DataError, EnvironmentProblem, StorageError, UsageError, VlatoolError
from .serving.client import RemotePolicy, connect
from .serving.loop import ControlLoop

__all__ = [
    "ControlLoop",
    "DataError",
    "EnvironmentProblem",
    "RemotePolicy",
    "StorageError",
    "UsageError",
    "VlatoolError",
    "connect",
]
