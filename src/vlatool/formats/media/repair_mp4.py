"""Videos that are cut off, or whose index (`moov`) was never written.

Without the index neither the settings of the decoder nor the borders of frames are known: the
settings come from a whole video of the same recorder, the borders from the units of the codec.
Source: ISO/IEC 14496-12 (boxes), 14496-15 (length-prefixed units); section 7.3 of H.264 and H.265.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vlatool.episode import Clip
from vlatool.formats.media.repair import NothingWhole, Salvaged
from vlatool.formats.media.video import ClipWriter, copy_clip, opened
from vlatool.storage.byte_ranges import read_file

_LARGEST_UNIT = 2**28
_ERRORS = (av.error.FFmpegError, IndexError, ValueError)


def is_whole(path: Path) -> bool:
    """True if the file has an index and all packets that it lists."""
    try:
        whole, count, expected, _ = _packets(path)
    except _ERRORS:
        return False
    return 0 < whole == count >= expected


def salvage(path: Path, target: Path, others: Iterable[Path]) -> Salvaged:
    """Writes a video of the whole frames of a damaged one, without encoding them again."""
    try:
        whole, _, expected, rate = _packets(path)
    except _ERRORS:
        return _without_index(path, target, others)
    for count in range(whole, 0, -1):  # B-frames at the cut need packets behind it
        clip = copy_clip(Clip(path), count, rate)
        if clip is not None:
            target.write_bytes(clip.data)
            return Salvaged(f"{count} of {expected or 'some'} frames", ("the frames behind them",))
    raise NothingWhole("it has no whole frames")


def _packets(path: Path) -> tuple[int, int, int, Fraction]:
    """Numbers of whole packets, of packets, and of frames by the index; frames per second."""
    with opened(path) as container:
        stream = container.streams.video[0]
        if getattr(stream, "codec_context", None) is None:
            raise ValueError("its codec is unknown")
        packets = [packet.is_corrupt for packet in container.demux(stream) if packet.size]
        rate = stream.average_rate or Fraction(30)
        return packets.count(False), len(packets), stream.frames, rate


def _without_index(path: Path, target: Path, others: Iterable[Path]) -> Salvaged:
    data = _media(path)
    for other in others:
        with opened(other) as container:
            template = container.streams.video[0]
            codec = template.codec_context.name
            if codec not in _HEADERS:
                continue
            first = next(bytes(packet) for packet in container.demux(template) if packet.size)
            samples = [*_samples(data, codec)]
            if not samples or _settings(first, codec) != _settings(samples[0][0], codec):
                continue
            packets = _shown(samples, template)
            if not packets:
                continue
            rate = template.average_rate or Fraction(30)
            delays = [position - int(packet.pts or 0) for position, packet in enumerate(packets)]
            delay = max(delays)
            with target.open("wb") as file, ClipWriter(file, template, rate, delay) as writer:
                writer.write(packets)
        return Salvaged(
            f"{len(packets)} frames, at the rate and with the settings of {other.name}",
            ("the index, and frames behind them if there were any",),
        )
    raise NothingWhole(
        "its index (moov) was never written, and no whole h264 or hevc video of the same recorder "
        "is beside it"
    )


def _media(path: Path) -> memoryview:
    """Content of the box `mdat`, as far as it goes."""
    data = memoryview(read_file(path))
    start = 0
    while start + 8 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        header = 8
        kind = bytes(data[start + 4 : start + 8])
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
            header = 16
        if kind == b"mdat":
            is_open = size < header or start + size > len(data)  # never closed, or cut off
            return data[start + header : len(data) if is_open else start + size]
        if size < header:
            break
        start += size
    raise NothingWhole("it has no media data")


_HEADERS = {"h264": 1, "hevc": 2}  # bytes of the header of a unit


def _unit(unit: memoryview, codec: str) -> tuple[bool, bool, bool]:
    """Flags of a unit: part of an image, the first of one, of an image that needs no others."""
    if codec == "h264":
        kind = unit[0] & 31
        is_image = 1 <= kind <= 5
        is_key = kind == 5
    else:
        kind = unit[0] >> 1 & 63
        is_image = kind < 32
        is_key = 16 <= kind <= 23
    header = _HEADERS[codec]
    is_first = is_image and len(unit) > header and unit[header] >= 128
    return is_image, is_first, is_key


def _samples(data: memoryview, codec: str) -> Iterator[tuple[bytes, bool]]:
    """Whole samples in the order of decoding, each with whether decoding can start there."""
    begin = 0
    start = 0
    has_image = False
    has_key = False
    while start + 4 < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        unit = data[start + 4 : start + 4 + size]
        if not _HEADERS[codec] < size <= _LARGEST_UNIT or len(unit) < size or unit[0] >= 128:
            break
        is_image, is_first, is_key = _unit(unit, codec)
        if has_image and (is_first or not is_image):
            yield bytes(data[begin:start]), has_key
            begin = start
            has_image = False
            has_key = False
        has_image = has_image or is_image
        has_key = has_key or (is_image and is_key)
        start += 4 + size
    # The last one may lack units: it is left out unless the data end with it.
    if has_image and start == len(data):
        yield bytes(data[begin:start]), has_key


def _settings(sample: bytes, codec: str) -> bytes:
    """Text of the encoder about itself in its first sample; empty without one."""
    size = int.from_bytes(sample[:4], "big")
    unit = memoryview(sample)[4 : 4 + size]
    is_image, _, _ = _unit(unit, codec)
    return b"" if is_image else bytes(unit)


def _shown(samples: Sequence[tuple[bytes, bool]], template: VideoStream) -> list[Packet]:
    """The samples as packets with the numbers of their frames; empty if they are not decoded."""
    context = av.CodecContext.create(template.codec_context.name, "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = template.codec_context.extradata
    packets: list[Packet] = []
    decoded: list[int] = []  # numbers of the samples in the order of presentation
    try:
        for number, (data, is_key) in enumerate(samples):
            packet = Packet(data)
            packet.pts = number
            packet.dts = number
            packet.is_keyframe = is_key
            packets.append(packet)
            decoded += _intact(context, packet)
        decoded += _intact(context, None)
    except av.error.FFmpegError:
        return []
    _, starts_with_key = samples[0]
    if sorted(decoded) != [*range(len(packets))] or not starts_with_key:
        return []
    for rank, number in enumerate(decoded):
        packets[number].pts = rank
    if decoded == sorted(decoded):
        return packets
    # Images that are shown before the last one and stored behind it may be cut off.
    return packets[: decoded[-1]]


def _intact(context: VideoCodecContext, packet: Packet | None) -> list[int]:
    frames = context.decode(packet)
    return [frame.pts for frame in frames if frame.pts is not None and not frame.is_corrupt]
