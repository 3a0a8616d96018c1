"""Members of a tar of unknown origin, in order, from a stream.

Plain files and folders below one folder are accepted, each name once. Everything else that a tar
can hold (links, devices, sparse files, names that lead elsewhere) ends the reading with an error
before it has any effect. Modes, owners and times of members are not used.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, NoReturn, Self, cast

from vlatool.errors import DataError
from vlatool.jobs.files import FOLDER
from vlatool.storage.uri import is_file_name

_BROKEN = (
    tarfile.TarError, EOFError, ValueError, OverflowError, IndexError, KeyError, RecursionError,
)  # fmt: skip
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.CONTTYPE: "a contiguous file",
}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
# Far above honest archives; without limits, headers fill the memory.
_MAX_HEADER_BYTES = 2**20
_MAX_MEMBERS = 2**22
_LONGEST_NAME = 1024  # bytes: with the path of the output below the 4096 of common systems
_SHOWN = 100
_NOT_GLOBAL = ("path", "linkpath", "size")  # in a global header they would change all members


_BUFFER_BYTES = 2**18
_BLOCK_BYTES = 2**20

Stream = IO[bytes] | io.RawIOBase


@dataclass(frozen=True)
class Member:
    """File or folder of an archive."""

    name: str  # Path below the folder of the archive that is read
    next: int  # position in the archive behind it, at which the reading can continue
    size: int  # size of its content in bytes
    is_folder: bool = False  # True for a folder


class ArchiveReader:
    """Reader of a tar.

    `prefix`: folder of the archive that is read, such as `tasks/NAME`; nothing else may be there;
    `size`: size of the archive in bytes.
    """

    def __init__(self, where: object, prefix: str, size: int) -> None:
        self._where = where
        self._prefix = tuple(prefix.split("/"))
        self._size = size
        self.files: set[str] = set()  # names of the files so far
        # names of the folders so far, also of those that only occur in names of files
        self.folders: set[str] = set()

    def add(self, name: str, *, is_folder: bool) -> None:
        """Adds the name of a member that was read before."""
        self.folders.update(_above(name))
        (self.folders if is_folder else self.files).add(name)

    def members(self, file: Stream, position: int) -> Iterator[tuple[Member, Iterator[bytes]]]:
        """Yields members with their content, which must be read before the next one.

        `file`: the archive from `position` on, the start or the `next` of a member.
        """
        stream: Any = _LimitedStream(file)  # `tarfile` uses `read` only
        at = position
        try:
            with tarfile.open(
                fileobj=stream,
                mode="r|",
                bufsize=_BUFFER_BYTES,
                tarinfo=_Header,
                encoding="utf-8",
            ) as tar:
                while True:
                    stream.left = _MAX_HEADER_BYTES
                    info = tar.next()
                    cast("Any", tar).members = []  # it would keep all of them
                    if info is None:
                        break
                    self._check_global(tar)
                    member = self._accepted(info, position)
                    at = position + tar.offset
                    if member is not None:
                        stream.left = member.size + _MAX_HEADER_BYTES
                        yield member, self._content(tar.extractfile(info), member)
                stream.left = self._size
                read = partial(cast("Any", tar).fileobj.read, _BUFFER_BYTES)
                for rest in iter(read, b""):
                    if rest.strip(b"\0"):
                        self._break("has content after its end marker")
        except _BROKEN as error:
            self._break(f"is damaged, ends early, or is no tar, at byte {at}: {error}")
        if not self.files:
            self._break("holds no files")

    def _content(self, file: IO[bytes] | None, member: Member) -> Iterator[bytes]:
        """Content of a member, in blocks."""
        left = member.size
        while left and file is not None:
            try:
                block = file.read(min(left, _BLOCK_BYTES))
            except _BROKEN:
                block = b""
            if not block:
                self._break(f"ends early, in {member.name!a}")
            left -= len(block)
            yield block

    def _check_global(self, tar: tarfile.TarFile) -> None:
        names = [key for key in tar.pax_headers if key in _NOT_GLOBAL or "sparse" in key]
        if names:
            raise ValueError(f"a global header that sets {', '.join(names)}")

    def _accepted(self, info: tarfile.TarInfo, base: int) -> Member | None:
        """Member of a header; None for the folders that contain all others."""
        self._check_kind(info)
        parts = self._parts(info)
        below = parts[len(self._prefix) :]
        if parts != (*self._prefix, *below):
            if info.isdir() and parts == self._prefix[: len(parts)]:
                return None
            self._refuse(info, f"is outside of {'/'.join(self._prefix)}/")
        if not below and info.isdir():
            return None
        if not below:
            self._refuse(info, "is a file instead of a folder")
        name = "/".join(below)
        above = _above(name)
        if name in self.files or (name in self.folders and not info.isdir()):
            self._refuse(info, "occurs twice")
        if above & self.files:
            self._refuse(info, "is below a file")
        self.add(name, is_folder=info.isdir())
        content = base + info.offset_data
        if info.size < 0 or content + info.size > self._size:
            self._break(
                f"ends early, or claims a wrong size: {self._shown(info)} has {info.size:,} bytes"
            )
        after = content + info.size + -info.size % tarfile.BLOCKSIZE
        return Member(name, after, info.size, info.isdir())

    def _check_kind(self, info: tarfile.TarInfo) -> None:
        if info.issparse() or any("sparse" in key for key in info.pax_headers):
            self._refuse(info, "is a sparse file")
        if info.type not in (*_PLAIN, tarfile.DIRTYPE):
            self._refuse(info, f"is {_KINDS.get(info.type, 'of an unknown kind')}")
        if info.isdir() and info.size:
            self._refuse(info, "is a folder with content")
        if len(self.files) + len(self.folders) >= _MAX_MEMBERS:
            self._refuse(info, f"is one of more than {_MAX_MEMBERS:,}")

    def _parts(self, info: tarfile.TarInfo) -> tuple[str, ...]:
        if info.name.startswith("/"):
            self._refuse(info, "has an absolute name")
        parts = tuple(part for part in info.name.split("/") if part not in ("", "."))
        if ".." in parts:
            self._refuse(info, "has a name that leads out of the folder")
        if FOLDER in parts:
            self._refuse(info, f"would be part of the records in {FOLDER}/")
        is_text = info.name.isprintable() and all(map(is_file_name, parts))
        if not is_text or len(info.name.encode(errors="replace")) > _LONGEST_NAME:
            self._refuse(info, "has a name that cannot be a file name here")
        return parts

    def _shown(self, info: tarfile.TarInfo) -> str:
        name = ascii(info.name)
        return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."

    def _refuse(self, info: tarfile.TarInfo, reason: str) -> NoReturn:
        raise DataError.at(
            self._where,
            f"the member {self._shown(info)} {reason}",
            hint="do not use this archive, unless you know why it holds that; `vlatool download"
            " LOCATION` downloads it as a file",
            code="data.unsafe",
        )

    def _break(self, reason: str) -> NoReturn:
        raise DataError.at(
            self._where,
            reason,
            hint="the archive there is damaged or not complete; ask its publisher",
            code="data.broken",
        )


class _Header(tarfile.TarInfo):
    """Header whose damage is an error everywhere; `tarfile` takes it for the end of an archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


class _LimitedStream:
    """Stream of which only `left` bytes can be read: a header may claim any size."""

    def __init__(self, file: Stream) -> None:
        self._file = file
        self.left = _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        if self.left <= 0:
            raise ValueError(f"headers of more than {_MAX_HEADER_BYTES:,} bytes")
        data = self._file.read(size) or b""
        self.left -= len(data)
        return data


def _above(name: str) -> set[str]:
    """Names of the folders that contain a member."""
    parts = name.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}
