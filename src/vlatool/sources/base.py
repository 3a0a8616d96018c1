"""The name until 0.4 of `vlatool.formats.base`."""

import warnings

from vlatool.formats.base import *  # noqa: F403

_MOVED = "vlatool.sources.base is vlatool.formats.base now; the old name goes with 0.4"
warnings.warn(_MOVED, DeprecationWarning, stacklevel=2)
