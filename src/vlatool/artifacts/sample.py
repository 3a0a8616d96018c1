"""A training sample as members of a tar: how it is written, and the one way it is read.

Source: formats/lbm 2.1, 2.2, 2.3, 2.4.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlatool.artifacts.image import decoded_size, open_image
from vlatool.artifacts.npz_bytes import array_headers, read_arrays, write_arrays
from vlatool.episode import Array, Sample

ARRAYS = "lowdim.npz"
METADATA = "metadata.json"
LANGUAGE = "language_instructions.json"
# Arrays that are no fields.
MASKS = ("past_mask", "future_mask")
CALIBRATION = ("original_intrinsics.", "rescaled_intrinsics.", "extrinsics.")

_IMAGE = re.compile(r"^(?P<camera>.+)_t(?P<offset>-?\d+)\.(?P<kind>jpe?g|png)$")
_SIDE = re.compile(r"_(depth|label)$")
_IMAGE_ENDS = (".jpg", ".jpeg", ".png")
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


class ImageName(NamedTuple):
    """What the suffix of a picture says.

    Attributes:
        camera: The camera, with `_depth` or `_label` where it is that side of one.
        offset: Frames from the anchor.
        is_auxiliary: Whether it shows depth or labels of another picture's camera.
    """

    camera: str
    offset: int
    is_auxiliary: bool

    @property
    def base_camera(self) -> str:
        """The camera itself."""
        return _SIDE.sub("", self.camera) if self.is_auxiliary else self.camera


def image_suffix(camera: str, offset: int) -> str:
    """The suffix of a camera's JPEG at `offset` frames from the anchor."""
    return f"{camera}_t{offset}.jpg"


def parse_image(suffix: str) -> ImageName | None:
    """Camera and offset of a picture; None for another member."""
    match = _IMAGE.match(suffix)
    if match is None:
        return None
    is_auxiliary = match["kind"] == "png" and _SIDE.search(match["camera"]) is not None
    return ImageName(match["camera"], int(match["offset"]), is_auxiliary)


def sample_members(sample: Sample, images: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each member, in the published order.

    Args:
        sample: The window.
        images: Encoded picture by member suffix (`front_t-1.jpg`), in the order they shall have.
    """
    for suffix, data in images.items():
        yield f"{sample.key}.{suffix}", data
    yield f"{sample.key}.{ARRAYS}", write_arrays(sample.lowdim)
    yield f"{sample.key}.{METADATA}", _json(sample.metadata, indent=2)
    yield f"{sample.key}.{LANGUAGE}", _json(dict(sample.language))


@dataclass(frozen=True)
class StoredSample:
    """A sample as it is stored; nothing is decoded before it is asked for, nothing unpickled.

    What is missing raises KeyError with its name, what is broken ValueError: callers know the
    shard and what to do about it.

    Attributes:
        key: Its name, without dots.
        members: Suffix to content; may be read when asked for.
    """

    key: str
    members: Mapping[str, bytes]

    def images(self) -> dict[str, ImageName]:
        """Suffix of each picture to what it says, in the order of the tar."""
        names = ((suffix, parse_image(suffix)) for suffix in self.members)
        return {suffix: name for suffix, name in names if name is not None}

    def image_suffixes(self) -> dict[tuple[str, int], str]:
        """(camera, offset) of each picture to its suffix."""
        return {(name.camera, name.offset): suffix for suffix, name in self.images().items()}

    def json(self, suffix: str) -> object:
        """The value of a JSON member; NaN and infinity are None."""
        try:
            return _DECODER.decode(self.members[suffix].decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{suffix}: {error}") from None

    def metadata(self) -> dict[str, Any]:
        """metadata.json; empty where it is missing or no object."""
        content = self.json(METADATA) if METADATA in self.members else None
        return content if isinstance(content, dict) else {}

    def language(self) -> dict[str, list[str]]:
        """Kind of annotation to sentences, a lone one as a list; empty where there are none."""
        content = self.json(LANGUAGE) if LANGUAGE in self.members else None
        return {
            str(kind): [str(text) for text in (texts if isinstance(texts, list) else [texts])]
            for kind, texts in (content.items() if isinstance(content, dict) else ())
            if texts
        }

    def arrays(self, names: Sequence[str] | None = None) -> dict[str, Array]:
        """The named low-dimensional arrays, or all; the others are not inflated."""
        try:
            return read_arrays(self.members[ARRAYS], names)
        except ValueError as error:
            raise ValueError(f"{ARRAYS}: {error}") from None

    def array_headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Array to shape and type, from the headers; those before the first that is broken."""
        return dict(array_headers(self.members[ARRAYS]))

    def image_size(self, suffix: str, *, decode: bool) -> tuple[int, int] | None:
        """(width, height) of a picture; None where it cannot be opened (or, `decode`, decoded)."""
        try:
            if decode:
                return decoded_size(self.members[suffix])
            with open_image(self.members[suffix]) as image:
                return image.size
        except (OSError, ValueError):
            return None

    def image_sizes(self) -> dict[str, tuple[int, int] | None]:
        """Suffix of each picture, whatever its name, to its (width, height)."""
        names = [name for name in self.members if name.endswith(_IMAGE_ENDS)]
        return {name: self.image_size(name, decode=False) for name in names}


def _json(value: Mapping[str, Any] | Sequence[Any], indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).encode()
