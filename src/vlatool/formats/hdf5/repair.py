"""HDF5 files that were not closed or are cut off: the tools of HDF5 mend what can be mended."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.errors import installed
from vlatool.formats.media.repair import NothingWhole, Salvaged

_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)


def is_whole(path: Path) -> bool:
    """True if the library opens the file and every object in it."""
    h5py = installed("h5py")
    try:
        with h5py.File(path, "r") as file:
            file.visititems(lambda _name, item: dict(item.attrs) and None)
    except _ERRORS:
        return False
    return True


def salvage(path: Path, target: Path, others: Iterator[Path]) -> Salvaged:
    """Nothing: a copy of the file may be mended in place by h5clear."""
    raise NothingWhole(
        f"HDF5 that was not closed: try h5clear -s --increment {path.name} on a copy of it"
    )
