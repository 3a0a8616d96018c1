"""Samples as members of a tar: writing, reading and parsing of their bytes."""

import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from tarfile import ReadError
from typing import Any, NamedTuple

from vlatool.episode import Array, Sample
from vlatool.media.images import decoded_size, open_image
from vlatool.media.npz import array_headers, read_arrays, write_arrays

ARRAYS = "lowdim.npz"
METADATA = "metadata.json"
LANGUAGE = "language_instructions.json"
# Arrays that are not fields.
MASKS = ("past_mask", "future_mask")
CALIBRATION = ("original_intrinsics.", "rescaled_intrinsics.", "extrinsics.")

_IMAGE = re.compile(r"^(?P<camera>.+)_t(?P<offset>-?\d+)\.(?P<kind>jpe?g|png)$")
_SIDE = re.compile(r"_(depth|label)$")
_IMAGE_ENDS = (".jpg", ".jpeg", ".png")
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


class ImageName(NamedTuple):
    """Parsed suffix of an image."""

    camera: str  # name of the camera; depth and labels have the suffix `_depth` or `_label`
    offset: int  # frames from the anchor
    is_auxiliary: bool  # True for depth and labels of a camera

    @property
    def base_camera(self) -> str:
        """Name of the camera without `_depth` or `_label`."""
        return _SIDE.sub("", self.camera) if self.is_auxiliary else self.camera


def image_suffix(camera: str, offset: int) -> str:
    """Suffix of a camera's JPEG at `offset` frames from the anchor."""
    return f"{camera}_t{offset}.jpg"


def parse_image(suffix: str) -> ImageName | None:
    """Camera and offset of an image; None for another member."""
    match = _IMAGE.match(suffix)
    if match is None:
        return None
    is_auxiliary = match["kind"] == "png" and _SIDE.search(match["camera"]) is not None
    return ImageName(match["camera"], int(match["offset"]), is_auxiliary)


def sample_members(sample: Sample, images: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each member, in the published order; `images`: encoded image by member
    suffix (`front_t-1.jpg`), in the order of the tar.
    """
    for suffix, data in images.items():
        yield f"{sample.key}.{suffix}", data
    yield f"{sample.key}.{ARRAYS}", write_arrays(sample.lowdim)
    yield f"{sample.key}.{METADATA}", _json(sample.metadata, indent=2)
    yield f"{sample.key}.{LANGUAGE}", _json(dict(sample.language))


@dataclass(frozen=True)
class StoredSample:
    """Encoded sample; members are decoded lazily, nothing is unpickled.

    A missing member raises KeyError with its name, a broken one ValueError: callers add the shard
    and a hint.
    """

    key: str  # name of the sample, without dots
    members: Mapping[str, bytes]  # map from suffix to content; may be read lazily

    def images(self) -> dict[str, ImageName]:
        """Map from suffix of each image to its parsed name, in the order of the tar."""
        images: dict[str, ImageName] = {}
        for suffix in self.members:
            name = parse_image(suffix)
            if name is not None:
                images[suffix] = name
        return images

    def image_suffixes(self) -> dict[tuple[str, int], str]:
        """(camera, offset) of each image to its suffix."""
        return {(name.camera, name.offset): suffix for suffix, name in self.images().items()}

    def json(self, suffix: str) -> object:
        """Value of a JSON member; NaN and infinity become None."""
        try:
            return _DECODER.decode(self.members[suffix].decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{suffix}: {error}") from None

    def metadata(self) -> dict[str, Any]:
        """Content of metadata.json; empty if it is missing or no object."""
        content = self.json(METADATA) if METADATA in self.members else None
        return content if isinstance(content, dict) else {}

    def language(self) -> dict[str, list[str]]:
        """Map from kind of annotation to its list of instructions; empty if there are none."""
        content = self.json(LANGUAGE) if LANGUAGE in self.members else None
        if not isinstance(content, dict):
            return {}
        language: dict[str, list[str]] = {}
        for kind, texts in content.items():
            if texts:
                several = texts if isinstance(texts, list) else [texts]
                language[str(kind)] = [str(text) for text in several]
        return language

    def arrays(self, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Named low-dimensional arrays, or all; the others are not decompressed."""
        try:
            return read_arrays(self.members[ARRAYS], names)
        except ValueError as error:
            raise ValueError(f"{ARRAYS}: {error}") from None

    def array_headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Map from array to shape and dtype, from the headers; ends at the first broken header."""
        return dict(array_headers(self.members[ARRAYS]))

    def image_size(self, suffix: str, *, decode: bool) -> tuple[int, int] | None:
        """(width, height) of an image; None if it cannot be opened (or decoded, with `decode`)."""
        try:
            if decode:
                return decoded_size(self.members[suffix])
            with open_image(self.members[suffix]) as image:
                return image.size
        except (OSError, ValueError):
            return None

    def image_sizes(self) -> dict[str, tuple[int, int] | None]:
        """Suffix of each image, of any name, to its (width, height)."""
        names = [name for name in self.members if name.endswith(_IMAGE_ENDS)]
        return {name: self.image_size(name, decode=False) for name in names}


def _json(value: Mapping[str, Any] | Sequence[Any], indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).encode()


MAX_EXTENDED = 8  # extended headers of one member; its name, its times and a comment take two
_BLOCK = tarfile.BLOCKSIZE
_SUM = slice(148, 156)
# The bytes of the checksum count as spaces in the sum. Source: formats/lbm 2.5.
_SUM_AS_SPACES = 8 * 32
_ADLER_BASE = 65521
_PLAIN = b"0\0"
# Names as webdataset splits them; other names, and those it reserves, are skipped.
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


class LimitedHeader(tarfile.TarInfo):
    """Header of a member; tarfile reads each extended one before it one call deeper."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        """Next header; raises tarfile.ReadError after more than 8 extended ones."""
        depth = getattr(tarfile, "depth", 0)
        if depth > MAX_EXTENDED:
            raise ReadError(f"more than {MAX_EXTENDED} extended headers of a member")
        tarfile.depth = depth + 1
        header = super().fromtarfile(tarfile)
        tarfile.depth = depth
        return header


class Members(NamedTuple):
    """Members of one sample: its key, and suffix in lower case to content."""

    key: str
    contents: dict[str, bytes]


def read_members(data: bytes) -> Members:
    """Members of the sample in a byte range of a tar."""
    key = ""
    contents: dict[str, bytes] = {}
    for name, content in _members(data):
        match = _NAME.match(name)
        if match is None or _META.match(name):
            continue
        suffix = match[2].lower()
        if contents and match[1] != key:
            raise ValueError(f"two samples instead of one: {key} and {match[1]}")
        if suffix in contents:
            raise ValueError(f"sample {key} has {suffix!r} twice")
        key = match[1]
        contents[suffix] = content
    if not contents:
        raise ValueError("no sample")
    return Members(key, contents)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file."""
    position = 0
    while position < len(data):
        header = data[position : position + _BLOCK]
        # Other types (long names, links) and sizes beyond octal digits are rare.
        if len(header) < _BLOCK or header[156] not in _PLAIN or header[124] & 0x80:
            yield from _by_tarfile(data[position:])
            return
        # Adler-32 has the sum of the bytes modulo its base, in a tenth of the time of `sum`.
        checked = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[_SUM]) + _SUM_AS_SPACES
        if (checked - _octal(header[_SUM])) % _ADLER_BASE:
            raise ValueError("a damaged header")
        size = _octal(header[124:136])
        start = position + _BLOCK
        _check_forward(size)
        position = start + size + -size % _BLOCK
        if position > len(data):
            raise ValueError("is truncated")
        yield _name(header), data[start : start + size]


def _octal(digits: bytes) -> int:
    return int(digits.rstrip(b" \0").strip() or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _by_tarfile(data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=LimitedHeader) as tar:
            for member in tar:
                _check_forward(member.size)
                # A few bytes of a sparse member describe any number of zeros.
                is_stored = member.isreg() and not member.issparse()
                file = tar.extractfile(member) if is_stored else None
                if file is not None:
                    yield member.name, _check_size(file.read(), member.size)
            # At a damaged header tarfile stops without an error.
            _check_size(data[: tar.offset], len(data))
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"a damaged header: {error}") from None


def _check_forward(size: int) -> None:
    if size < 0:  # the member would end before it begins, and be read again
        raise ValueError(f"a member of {size} bytes")


def _check_size(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise ValueError("is truncated")
    return content
