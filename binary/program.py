"""What the single file starts: unpacks the rest of it at the first start, then runs the command."""

import hashlib
import multiprocessing
import os
import shutil
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

_ABANDONED_S = 3600.0


def main() -> None:
    """The command; worker processes begin here, too."""
    # Libraries of the file are for this process only, not for `git` or `docker`; workers start as
    # this process did.
    original = os.environ.pop("VLATOOL_LD_LIBRARY_PATH", "")
    os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    os.environ.pop("LD_LIBRARY_PATH", None)
    if original:
        os.environ["LD_LIBRARY_PATH"] = original
    partial = Path(sys.executable).parent
    sys.executable = os.environ["VLATOOL_BINARY"]
    multiprocessing.set_executable(sys.executable)
    multiprocessing.freeze_support()
    place = os.environ.pop("VLATOOL_UNPACK", "")
    if place:
        _finish(place, partial)
    from vlatool.__main__ import main as run

    run()


def _finish(place: str, partial: Path) -> None:
    """Unpacks the second archive, gives the folder its name, and starts the command there."""
    import zstandard

    start, first, name = place.split(" ", 2)
    folder = Path(name)
    try:
        with open(os.environ["VLATOOL_BINARY"], "rb") as file:
            file.seek(int(start))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(folder.name):
                _fail(partial, "the file is damaged", "copy it again")
            file.seek(int(start) + int(first))
            rest = zstandard.ZstdDecompressor().stream_reader(file)
            with tarfile.open(fileobj=rest, mode="r|") as archive:
                archive.extractall(partial, filter="data")
        # Tools that clean folders of old files leave broken ones.
        if folder.exists() and not (folder / "vlatool").exists():
            folder.rename(partial.with_name(f"{partial.name}.old"))
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "vlatool").exists():
                raise
            shutil.rmtree(partial)  # another start was faster
    except OSError as error:
        hint = "set XDG_CACHE_HOME to a folder that is writable and has room"
        _fail(partial, str(error), hint)
    for other in folder.parent.glob(f"{folder.name}.*"):  # of starts that were killed
        with suppress(OSError):
            if other.stat().st_mtime < time.time() - _ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)
    os.environ["PYINSTALLER_RESET_ENVIRONMENT"] = "1"  # else it looks for its files here
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606


def _fail(partial: Path, reason: str, hint: str) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    sys.stderr.write(f"error: vlatool cannot be unpacked: {reason}\nhint: {hint}\n")
    sys.exit(6)


if __name__ == "__main__":
    main()
