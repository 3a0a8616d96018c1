"""Training samples as members of a tar: writing and reading.

Source: formats/lbm 2.1, 2.2, 2.3, 2.4.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlatool.artifacts.images import decoded_size, open_image
from vlatool.artifacts.npz_bytes import array_headers, read_arrays, write_arrays
from vlatool.episode import Array, Sample

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
        names = ((suffix, parse_image(suffix)) for suffix in self.members)
        return {suffix: name for suffix, name in names if name is not None}

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
        return {
            str(kind): [str(text) for text in (texts if isinstance(texts, list) else [texts])]
            for kind, texts in (content.items() if isinstance(content, dict) else ())
            if texts
        }

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
