"""S3 locations as paths: what reads a `pathlib.Path` reads an object too."""

import io
import os
import posixpath
import stat as modes
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, Any

from vlatool.errors import StorageError
from vlatool.storage import s3, s3_listing, s3_reader

SCHEME = "s3://"
_FILE_MODE = modes.S_IFREG | 0o644
_FOLDER_MODE = modes.S_IFDIR | 0o755


def needs_local_file(path: object) -> StorageError:
    """The error for work that only a file on the local disk allows."""
    return StorageError(
        f"{path}: this can only be done in a local folder",
        hint="copy the data to a local folder and give its path",
        code="storage.needs_local_file",
        details={"path": str(path)},
    )


def _plain(segment: Any) -> Any:
    """`s3://bucket/key` as the plain path `/bucket/key`; other segments as they are."""
    if isinstance(segment, str) and segment.startswith(SCHEME):
        return "/" + segment.removeprefix(SCHEME).lstrip("/")
    return segment


class S3Path(PosixPath):
    """`s3://bucket/key` with the reading half of `pathlib.Path`.

    Inside it is the plain path `/bucket/key`, so joining, names and suffixes are pathlib's own.
    Folders are prefixes: they exist while something is below them. Paths that a listing yields
    remember what it said, like `os.DirEntry`; `Path(...) / name` asks anew. What a listing said is
    not pickled. What an object cannot do (rename, chmod, links) is refused with one sentence, since
    all of it asks for the local name.
    """

    _facts: s3.Facts | None

    def __new__(cls, *segments: Any) -> "S3Path":
        """A path from `s3://bucket/key` or `/bucket/key`, and what is below it."""
        return super().__new__(cls, *map(_plain, segments))

    def __init__(self, *segments: Any) -> None:
        if sys.version_info >= (3, 12):  # before, __new__ does all
            super().__init__(*map(_plain, segments))

    def __reduce__(self) -> tuple[Any, ...]:
        return (S3Path, (str(self),))

    def __fspath__(self) -> str:
        """Refuses: the operating system would look for a local file of this name."""
        raise needs_local_file(self)

    def __str__(self) -> str:
        plain = PosixPath.__str__(self)
        return f"s3:/{plain}" if plain.startswith("/") else plain

    def __repr__(self) -> str:
        return f"S3Path({str(self)!r})"

    def __bytes__(self) -> bytes:
        return str(self).encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Path) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def address(self) -> s3.Address:
        """Bucket and key; `..` is resolved."""
        plain = PosixPath.__str__(self)
        if ".." in plain:
            plain = posixpath.normpath(plain)
        bucket, _, key = plain.lstrip("/").partition("/")
        return s3.Address(bucket, key)

    def relative_to(  # pyright: ignore[reportIncompatibleMethodOverride] - relative: not in S3
        self, *other: Any, walk_up: bool = False
    ) -> Path:
        """The local, relative path that leads here from `other`."""
        base = S3Path(*other)
        if not isinstance(other[0], S3Path) and not str(other[0]).startswith(SCHEME):
            raise ValueError(f"{str(self)!r} is not below {str(other[0])!r}")
        del walk_up
        return Path(PurePosixPath(_plain(str(self))).relative_to(_plain(str(base))))

    def is_relative_to(self, *other: Any) -> bool:
        """Whether this is `other` or below it."""
        try:
            self.relative_to(*other)
        except ValueError:
            return False
        return True

    def match(self, path_pattern: str, **options: Any) -> bool:
        """Whether the end of the path matches."""
        return PurePosixPath(_plain(str(self))).match(path_pattern, **options)

    def resolve(self, strict: bool = False) -> "S3Path":  # noqa: FBT001, FBT002 - pathlib's
        """The path without `..`; there are no links."""
        if strict and not self.exists():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return self if ".." not in self.parts else S3Path(str(self.address))

    def absolute(self) -> "S3Path":
        """The path itself."""
        return self

    def is_absolute(self) -> bool:
        """True."""
        return PosixPath.__str__(self).startswith("/")

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size, time and kind.

        Raises:
            FileNotFoundError: There is neither an object nor anything below.
        """
        del follow_symlinks
        facts = self._look()
        if facts is None:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        mode = _FOLDER_MODE if facts.is_dir else _FILE_MODE
        time = int(facts.modified)
        whole = (mode, 0, 0, 1, 0, 0, facts.size, time, time, time)
        return os.stat_result(whole, {"st_mtime_ns": time * 10**9, "st_mtime": float(time)})

    def lstat(self) -> os.stat_result:
        """The same as `stat`."""
        return self.stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is an object, or anything below."""
        del follow_symlinks
        return self._look() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is an object."""
        del follow_symlinks
        facts = self._look()
        return facts is not None and not facts.is_dir

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether anything is below."""
        del follow_symlinks
        facts = self._look()
        return facts is not None and facts.is_dir

    def is_symlink(self) -> bool:
        """False."""
        return False

    def iterdir(self) -> Generator["S3Path"]:
        """What is directly below.

        Raises:
            FileNotFoundError: Nothing is.
        """
        found = s3_listing.level(self.address)
        if not found:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        yield from (self._below(name, facts) for name, facts in found)

    def glob(self, pattern: str, **_options: Any) -> Generator["S3Path"]:
        """What matches, as `pathlib` does; at most one `**`."""
        for name, facts in s3_listing.matching(self.address, pattern):
            yield self._below(name, facts)

    def rglob(self, pattern: str, **_options: Any) -> Generator["S3Path"]:
        """What matches at any depth, from one listing."""
        return self.glob(f"**/{pattern}")

    def walk(
        self,
        top_down: bool = True,  # noqa: FBT001, FBT002 - pathlib's
        *_ignored: Any,
        **_options: Any,
    ) -> Iterator[tuple["S3Path", list[str], list[str]]]:
        """Folders with the names of folders and files in them; the caller may prune the former."""
        if not top_down:
            raise NotImplementedError("object storage is walked from the top")
        yield from self._walked("", s3_listing.levels(self.address))

    def open(  # pyright: ignore[reportIncompatibleMethodOverride] - no overloads per mode
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A file for reading, text or binary.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The mode is for writing; `open_atomic` does that.
        """
        del buffering
        if sorted(mode.replace("t", "")) not in (["r"], ["b", "r"]):
            raise needs_local_file(self)
        binary = s3_reader.open_reader(self.address)
        if "b" in mode:
            return binary
        return io.TextIOWrapper(binary, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """The whole object; large ones in parallel ranges."""
        return s3_reader.read_whole(self.address)

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """The whole object as text, UTF-8 by default."""
        binary = io.BytesIO(self.read_bytes())
        return io.TextIOWrapper(binary, encoding or "utf-8", errors, newline).read()

    def write_bytes(self, data: Any) -> int:
        """Writes a whole object; returns its size."""
        content = bytes(data)
        s3.put(self.address, content)
        self._facts = None
        return len(content)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Writes a whole object as text, UTF-8 by default."""
        del newline
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's
        """Removes the object.

        Raises:
            FileNotFoundError: There is none, and that is not `missing_ok`.
        """
        self._facts = None
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        s3.delete(self.address)

    def mkdir(self, *_arguments: Any, **_options: Any) -> None:
        """Does nothing: a prefix needs no making."""

    def _look(self) -> s3.Facts | None:
        known = getattr(self, "_facts", None)
        return known if known is not None else s3.look(self.address)

    def _walked(
        self, below: str, levels: Mapping[str, s3_listing.Level]
    ) -> Iterator[tuple["S3Path", list[str], list[str]]]:
        level = levels[below]
        yield self._below(below, s3.Facts(is_dir=True)), level.folders, level.files
        for name in level.folders:
            yield from self._walked(f"{below}/{name}".lstrip("/"), levels)

    def _below(self, name: str, facts: s3.Facts) -> "S3Path":
        path = S3Path(str(self), name)
        path._facts = facts
        return path
