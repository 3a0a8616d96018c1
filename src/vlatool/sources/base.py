"""The name until 0.4 of `vlatool.recordings.base`."""

import warnings

from vlatool.recordings.base import *  # noqa: F403

_MOVED = "vlatool.sources.base is vlatool.recordings.base now; the old name goes with 0.4"
warnings.warn(_MOVED, DeprecationWarning, stacklevel=2)
