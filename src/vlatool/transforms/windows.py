"""Windows around anchor frames: which rows they take, how they are padded, what the masks say.

Legend of shapes: N windows, T = past + 1 + future steps, F frames, C channels.
Source: lbm-data 3.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlatool.episode import Array

Padding = Literal["copy", "zero", "reflect"]


@dataclass(frozen=True)
class WindowSpec:
    """The shape of a window; counts are frames, `past` and `future` without the anchor."""

    past: int
    future: int
    stride: int = 1
    max_padding_left: int = 1
    max_padding_right: int = 7
    padding: Padding = "copy"

    @property
    def length(self) -> int:
        """T."""
        return self.past + 1 + self.future


@dataclass(frozen=True)
class Windows:
    """The kept windows of one episode.

    Attributes:
        anchors: int [N], ascending.
        rows: int [N, T], the frame each step takes after padding.
        valid: bool [N, T], false where padded.
        pad_left: int [N].
        pad_right: int [N].
        dropped_padding: Anchors dropped for too much padding.
    """

    spec: WindowSpec
    anchors: Array
    rows: Array
    valid: Array
    pad_left: Array
    pad_right: Array
    dropped_padding: int

    @property
    def past_mask(self) -> Array:
        """Bool [N, T]: real steps strictly before the anchor."""
        return self.valid & (np.arange(self.spec.length) < self.spec.past)

    @property
    def future_mask(self) -> Array:
        """Bool [N, T]: real steps from the anchor on."""
        return self.valid & (np.arange(self.spec.length) >= self.spec.past)

    def keep(self, wanted: Array) -> "Windows":
        """Only the windows where `wanted` [N] is true."""
        return replace(
            self,
            anchors=self.anchors[wanted],
            rows=self.rows[wanted],
            valid=self.valid[wanted],
            pad_left=self.pad_left[wanted],
            pad_right=self.pad_right[wanted],
        )

    def cut(self, values: Array) -> Array:
        """Windows [N, T, ...] of per-frame values [F, ...], padded by the spec's rule."""
        windows = values[self.rows]
        if self.spec.padding == "zero" and windows.dtype.kind != "U":
            windows[~self.valid] = 0
        return windows

    def cut_edge_padded(self, values: Array) -> Array:
        """Like `cut`, but always padded with the edge rows; calibration is."""
        steps = np.arange(self.spec.length) - self.spec.past
        return values[np.clip(self.anchors[:, None] + steps, 0, len(values) - 1)]


def make_windows(num_frames: int, spec: WindowSpec) -> Windows:
    """The windows of an episode of `num_frames` frames, in the order of their anchors."""
    candidates = np.arange(0, num_frames, spec.stride)
    pad_left = np.maximum(0, spec.past - candidates)
    pad_right = np.maximum(0, candidates + spec.future - num_frames + 1)
    kept = (pad_left <= spec.max_padding_left) & (pad_right <= spec.max_padding_right)
    anchors = candidates[kept]
    frames = anchors[:, None] + np.arange(-spec.past, spec.future + 1)
    return Windows(
        spec=spec,
        anchors=anchors,
        rows=_padded_rows(frames, num_frames, spec.padding),
        valid=(frames >= 0) & (frames < num_frames),
        pad_left=pad_left[kept],
        pad_right=pad_right[kept],
        dropped_padding=int(len(candidates) - len(anchors)),
    )


def image_frames(anchor: int, offsets: Sequence[int], num_frames: int) -> dict[int, int]:
    """The frame of each image offset, clipped to the episode."""
    return {offset: min(max(anchor + offset, 0), num_frames - 1) for offset in offsets}


def _padded_rows(frames: Array, num_frames: int, padding: Padding) -> Array:
    """Frames [N, T] with those outside the episode replaced by the row that pads them."""
    clipped = np.clip(frames, 0, num_frames - 1)
    if padding != "reflect":
        return clipped
    first = clipped.min(axis=1, keepdims=True)
    span = clipped.max(axis=1, keepdims=True) - first
    return first + _mirror(frames - first, span)


def _mirror(position: Array, span: Array) -> Array:
    """Positions folded into 0..span by mirroring at both ends without repeating the edge."""
    period = np.maximum(2 * span, 1)
    folded = np.mod(position, period)
    return np.where(span == 0, 0, np.minimum(folded, period - folded))
