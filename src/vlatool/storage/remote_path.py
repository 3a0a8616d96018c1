"""Remote locations with the interface of `pathlib.Path`."""

import io
import os
import posixpath
import stat as modes
from collections.abc import Generator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from vlatool.errors import StorageError
from vlatool.storage import listing, reader
from vlatool.storage.remote import Address, ObjectInfo, call, find_object, remote_class
from vlatool.storage.writer import delete, put

_FILE_MODE = modes.S_IFREG | 0o644
_FOLDER_MODE = modes.S_IFDIR | 0o755

# A path for type checkers only: at run time, no method of pathlib may be inherited.
_Path = Path if TYPE_CHECKING else object


def needs_local_file(path: object) -> StorageError:
    """Error for an operation that needs a file on the local disk."""
    return StorageError.at(
        path,
        "this operation needs a local file or folder",
        hint="copy the data to a local folder and give its path",
        code="storage.unsupported",
    )


class RemotePath(_Path):
    """Location `scheme://root/key` with the reading methods of `pathlib.Path`.

    Folders are prefixes: they exist while a key is below them. Paths from a listing keep its
    information, like `os.DirEntry`; it is not pickled, and `path / name` does not have it.
    Operations that objects do not support (rename, chmod, links, the name of a local file) raise
    StorageError.
    """

    _root: str
    _key: PurePosixPath
    _info: ObjectInfo | None

    def __init__(  # pyright: ignore[reportInconsistentConstructor] - Path has another one
        self, location: "str | Path", *below: "str | os.PathLike[str]"
    ) -> None:
        scheme, _, rest = str(location).partition("://")
        form = remote_class(scheme).form
        segments = form.canonical(rest).split("/")
        roots = form.num_root_segments
        self._root = f"{scheme}://{'/'.join(segments[:roots])}"
        self._key = PurePosixPath("/".join(segments[roots:]).strip("/"), *map(str, below))
        self._info = None

    @classmethod
    def _new(cls, root: str, key: PurePosixPath, info: ObjectInfo | None = None) -> "RemotePath":
        path = object.__new__(cls)
        path._root = root
        path._key = key
        path._info = info
        return path

    def __getattr__(self, name: str) -> Any:
        """Raises StorageError for methods that only local paths have."""
        if not name.startswith("_") and hasattr(Path, name):
            raise needs_local_file(self)
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemotePath, (str(self),))

    def __fspath__(self) -> str:
        """Raises StorageError: the operating system would open a local file of this name."""
        raise needs_local_file(self)

    def __str__(self) -> str:
        return f"{self._root}/{self._key}" if self._key.parts else self._root

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Any) -> bool:
        return self.parts < other.parts

    def __truediv__(self, name: "str | os.PathLike[str]") -> "RemotePath":
        return self._new(self._root, self._key / name)

    def joinpath(self, *names: "str | os.PathLike[str]") -> "RemotePath":
        return self._new(self._root, self._key.joinpath(*names))

    def pinned(self) -> "RemotePath":
        """Path with the current version of its root, if the storage has versions."""
        if not hasattr(remote_class(self._root.partition("://")[0]), "pinned"):
            return self
        root = call(self.address, lambda remote: getattr(remote, "pinned", self._root))
        return self._new(root, self._key)

    @property
    def version(self) -> str:
        """Version in the location; empty if there is none."""
        return remote_class(self._root.partition("://")[0]).form.version(self._root)

    def with_info(self) -> "RemotePath | None":
        """Path with the information of one request; None if it does not exist."""
        info = self._find()
        return None if info is None else self._new(self._root, self._key, info)

    def opened(self) -> IO[bytes]:
        """The object at the version that is known, else at the current one, as a seekable file."""
        info = self._find()
        if info is None or info.is_dir:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return reader.open_version(self.address, info)

    @property
    def address(self) -> Address:
        """Root and key; `..` is resolved."""
        key = str(self._key) if self._key.parts else ""
        if ".." in self._key.parts:
            key = posixpath.normpath(f"/{key}").lstrip("/")
        return Address(self._root, key)

    @property
    def parts(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Root, then the segments of the key."""
        return (self._root, *self._key.parts)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._key.name or self._root.rpartition("/")[2].partition("@")[0]

    @property
    def stem(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._key.stem or self.name

    @property
    def suffix(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._key.suffix

    @property
    def parent(self) -> "RemotePath":  # pyright: ignore[reportIncompatibleVariableOverride]
        """Folder of the path; the root is its own folder."""
        return self._new(self._root, self._key.parent)

    @property
    def parents(self) -> Sequence["RemotePath"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All folders that contain the path, up to the root."""
        return [self._new(self._root, above) for above in self._key.parents]

    def with_name(self, name: str) -> "RemotePath":
        return self._new(self._root, self._key.with_name(name))

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self._new(self._root, self._key.with_suffix(suffix))

    def as_posix(self) -> str:
        return str(self)

    def relative_to(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: Any, *, walk_up: bool = False
    ) -> Path:
        base = RemotePath(str(other)) if "://" in str(other) else None
        if base is None or base._root != self._root:
            raise ValueError(f"{str(self)!r} is not below {str(other)!r}")
        return Path(self._key.relative_to(base._key))

    def is_relative_to(self, other: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            self.relative_to(other)
        except ValueError:
            return False
        return True

    def resolve(self, strict: bool = False) -> "RemotePath":  # noqa: FBT001, FBT002 - pathlib's
        """Path without `..`; there are no links."""
        if strict and not self.exists():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return self if ".." not in self._key.parts else RemotePath(str(self.address))

    def absolute(self) -> "RemotePath":
        return self

    def is_absolute(self) -> bool:
        return True

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        info = self._find()
        if info is None:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        mode = _FOLDER_MODE if info.is_dir else _FILE_MODE
        time = int(info.modified)
        values = (mode, 0, 0, 1, 0, 0, info.size, time, time, time)
        return os.stat_result(values, {"st_mtime_ns": time * 10**9, "st_mtime": float(time)})

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._find() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        info = self._find()
        return info is not None and not info.is_dir

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """True if the path is a prefix of keys."""
        info = self._find()
        return info is not None and info.is_dir

    def iterdir(self) -> Generator["RemotePath"]:
        entries = listing.level(self.address)
        if not entries:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        yield from (self._below(name, info) for name, info in entries)

    def glob(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pattern: str, **_options: Any
    ) -> Generator["RemotePath"]:
        """Yields paths that match, as in `pathlib`; at most one `**`."""
        for name, info in listing.matching(self.address, pattern):
            yield self._below(name, info)

    def rglob(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pattern: str, **_options: Any
    ) -> Generator["RemotePath"]:
        """Yields paths that match at any depth, from one listing."""
        return self.glob(f"**/{pattern}")

    def open(  # pyright: ignore[reportIncompatibleMethodOverride] - no overloads per mode
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, **options: Any
    ) -> IO[Any]:
        """Opens the object for reading, as text or binary."""
        if sorted(mode.replace("t", "")) not in (["r"], ["b", "r"]):
            raise needs_local_file(self)
        binary = reader.open_reader(self.address)
        if "b" in mode:
            return binary
        return io.TextIOWrapper(binary, encoding or "utf-8", **options)

    def read_bytes(self) -> bytes:
        """Reads the object; large ones in parallel ranges."""
        return reader.read_whole(self.address)

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """Reads the object as text, UTF-8 by default."""
        binary = io.BytesIO(self.read_bytes())
        return io.TextIOWrapper(binary, encoding or "utf-8", errors, newline).read()

    def write_bytes(self, data: Any) -> int:
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
        """Writes the object as text, UTF-8 by default; lines end as they are."""
        del newline
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's
        self._info = None
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        delete(self.address)

    def mkdir(self, *_arguments: Any, **_options: Any) -> None:
        """Does nothing: prefixes need not be created."""

    def _find(self) -> ObjectInfo | None:
        return self._info if self._info is not None else find_object(self.address)

    def _below(self, name: str, info: ObjectInfo) -> "RemotePath":
        return self._new(self._root, self._key / name, info)
