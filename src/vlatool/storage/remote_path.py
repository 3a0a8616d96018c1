"""Remote locations as paths: what reads a `pathlib.Path` reads an object too."""

import io
import os
import posixpath
import stat as modes
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from vlatool.errors import StorageError
from vlatool.storage import listing, reader
from vlatool.storage.remote import Address, ObjectInfo, call, find_object
from vlatool.storage.writer import delete, put

_FILE_MODE = modes.S_IFREG | 0o644
_FOLDER_MODE = modes.S_IFDIR | 0o755
# Segments behind `scheme://` that are no part of a key.
_ROOT_SEGMENTS = {"hf": 3}

# To a type checker it is a path; when running, nothing of pathlib's own can touch it.
_Path = Path if TYPE_CHECKING else object


def needs_local_file(path: object) -> StorageError:
    """The error for work that only a file on the local disk allows."""
    return StorageError(
        f"{path}: this can only be done in a local folder",
        hint="copy the data to a local folder and give its path",
        code="storage.needs_local_file",
        details={"path": str(path)},
    )


class RemotePath(_Path):
    """`scheme://root/key` with the reading half of `pathlib.Path`.

    Folders are prefixes: they exist while something is below them. Paths that a listing yields
    remember what it said, like `os.DirEntry`; `path / name` asks anew. What a listing said is not
    pickled. What an object cannot do (rename, chmod, links), and what asks for the name of a local
    file, is refused with one sentence.
    """

    _root: str
    _key: PurePosixPath
    _info: ObjectInfo | None

    def __init__(  # pyright: ignore[reportInconsistentConstructor] - of the type checker's Path
        self, location: "str | Path", *below: "str | os.PathLike[str]"
    ) -> None:
        scheme, _, rest = str(location).partition("://")
        segments = rest.split("/")
        roots = _ROOT_SEGMENTS.get(scheme, 1)
        self._root = f"{scheme}://{'/'.join(segments[:roots])}"
        self._key = PurePosixPath("/".join(segments[roots:]).strip("/"), *map(str, below))
        self._info = None

    @classmethod
    def _made(cls, root: str, key: PurePosixPath, info: ObjectInfo | None = None) -> "RemotePath":
        path = object.__new__(cls)
        path._root, path._key, path._info = root, key, info
        return path

    def __getattr__(self, name: str) -> Any:
        """Refuses what only local files have."""
        if not name.startswith("_") and hasattr(Path, name):
            raise needs_local_file(self)
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemotePath, (str(self),))

    def __fspath__(self) -> str:
        """Refuses: the operating system would look for a local file of this name."""
        raise needs_local_file(self)

    def __str__(self) -> str:
        return f"{self._root}/{self._key}" if self._key.parts else self._root

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __bytes__(self) -> bytes:
        return str(self).encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Any) -> bool:
        return self.parts < other.parts

    def __truediv__(self, name: "str | os.PathLike[str]") -> "RemotePath":
        return self._made(self._root, self._key / name)

    def joinpath(self, *names: "str | os.PathLike[str]") -> "RemotePath":
        """The path below."""
        return self._made(self._root, self._key.joinpath(*names))

    def pinned(self) -> "RemotePath":
        """The path with the version that its root has now, where places have versions."""
        root = call(self.address, lambda remote: getattr(remote, "pinned", self._root))
        return self._made(root, self._key)

    @property
    def version(self) -> str:
        """The version that the location names; empty where it names none."""
        return self._root.partition("@")[2]

    def known(self) -> "RemotePath | None":
        """The path with what one request tells of it; None where nothing is."""
        info = self._look()
        return None if info is None else self._made(self._root, self._key, info)

    @property
    def address(self) -> Address:
        """Place and key; `..` is resolved."""
        key = str(self._key) if self._key.parts else ""
        if ".." in self._key.parts:
            key = posixpath.normpath(f"/{key}").lstrip("/")
        return Address(self._root, key)

    @property
    def parts(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The root, then the segments of the key."""
        return (self._root, *self._key.parts)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The last segment."""
        return self._key.name or self._root.rpartition("/")[2].partition("@")[0]

    @property
    def stem(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name without its suffix."""
        return self._key.stem or self.name

    @property
    def suffix(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the key ends with, from its last dot on."""
        return self._key.suffix

    @property
    def suffixes(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Every suffix of the key."""
        return self._key.suffixes

    @property
    def parent(self) -> "RemotePath":  # pyright: ignore[reportIncompatibleVariableOverride]
        """The folder; a root is its own."""
        return self._made(self._root, self._key.parent)

    @property
    def parents(self) -> Sequence["RemotePath"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The folder, its folder and so on up to the root."""
        return [self._made(self._root, above) for above in self._key.parents]

    def with_name(self, name: str) -> "RemotePath":
        """The path beside."""
        return self._made(self._root, self._key.with_name(name))

    def with_stem(self, stem: str) -> "RemotePath":
        """The path beside with the same suffix."""
        return self._made(self._root, self._key.with_stem(stem))

    def with_suffix(self, suffix: str) -> "RemotePath":
        """The path with another suffix."""
        return self._made(self._root, self._key.with_suffix(suffix))

    def as_posix(self) -> str:
        """The location."""
        return str(self)

    def relative_to(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: Any, *, walk_up: bool = False
    ) -> Path:
        """The local, relative path that leads here from `other`."""
        del walk_up
        base = RemotePath(str(other))
        if base._root != self._root:
            raise ValueError(f"{str(self)!r} is not below {str(other)!r}")
        return Path(self._key.relative_to(base._key))

    def is_relative_to(self, other: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether this is `other` or below it."""
        try:
            self.relative_to(other)
        except ValueError:
            return False
        return True

    def match(self, path_pattern: str, **options: Any) -> bool:
        """Whether the end of the path matches."""
        return self._key.match(path_pattern, **options)

    def resolve(self, strict: bool = False) -> "RemotePath":  # noqa: FBT001, FBT002 - pathlib's
        """The path without `..`; there are no links."""
        if strict and not self.exists():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return self if ".." not in self._key.parts else RemotePath(str(self.address))

    def absolute(self) -> "RemotePath":
        """The path itself."""
        return self

    def expanduser(self) -> "RemotePath":
        """The path itself."""
        return self

    def is_absolute(self) -> bool:
        """True."""
        return True

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size, time and kind.

        Raises:
            FileNotFoundError: There is neither an object nor anything below.
        """
        del follow_symlinks
        info = self._look()
        if info is None:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        mode = _FOLDER_MODE if info.is_dir else _FILE_MODE
        time = int(info.modified)
        whole = (mode, 0, 0, 1, 0, 0, info.size, time, time, time)
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
        info = self._look()
        return info is not None and not info.is_dir

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether anything is known to be below."""
        del follow_symlinks
        info = self._look()
        return info is not None and info.is_dir

    def is_symlink(self) -> bool:
        """False."""
        return False

    def iterdir(self) -> Generator["RemotePath"]:
        """What is directly below.

        Raises:
            FileNotFoundError: Nothing is.
        """
        found = listing.level(self.address)
        if not found:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        yield from (self._below(name, info) for name, info in found)

    def glob(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pattern: str, **_options: Any
    ) -> Generator["RemotePath"]:
        """What matches, as `pathlib` does; at most one `**`."""
        for name, info in listing.matching(self.address, pattern):
            yield self._below(name, info)

    def rglob(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pattern: str, **_options: Any
    ) -> Generator["RemotePath"]:
        """What matches at any depth, from one listing."""
        return self.glob(f"**/{pattern}")

    def walk(
        self,
        top_down: bool = True,  # noqa: FBT001, FBT002 - pathlib's
        *_ignored: Any,
        **_options: Any,
    ) -> Iterator[tuple["RemotePath", list[str], list[str]]]:
        """Folders with the names of folders and files in them; the caller may prune the former."""
        if not top_down:
            raise NotImplementedError("object storage is walked from the top")
        yield from self._walked("", listing.levels(self.address))

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
        binary = reader.open_reader(self.address)
        if "b" in mode:
            return binary
        return io.TextIOWrapper(binary, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """The whole object; large ones in parallel ranges."""
        return reader.read_whole(self.address)

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """The whole object as text, UTF-8 by default."""
        binary = io.BytesIO(self.read_bytes())
        return io.TextIOWrapper(binary, encoding or "utf-8", errors, newline).read()

    def write_bytes(self, data: Any) -> int:
        """Writes a whole object; returns its size."""
        content = bytes(data)
        put(self.address, content)
        self._info = None
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
        self._info = None
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        delete(self.address)

    def mkdir(self, *_arguments: Any, **_options: Any) -> None:
        """Does nothing: a prefix needs no making."""

    def _look(self) -> ObjectInfo | None:
        return self._info if self._info is not None else find_object(self.address)

    def _walked(
        self, below: str, levels: Mapping[str, listing.Level]
    ) -> Iterator[tuple["RemotePath", list[str], list[str]]]:
        level = levels[below]
        yield self._below(below, ObjectInfo(is_dir=True)), level.folders, level.files
        for name in level.folders:
            yield from self._walked(f"{below}/{name}".lstrip("/"), levels)

    def _below(self, name: str, info: ObjectInfo) -> "RemotePath":
        return self._made(self._root, self._key / name, info)
