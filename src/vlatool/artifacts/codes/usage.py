"""Use of the codebook in a folder of codes, and the warning about a collapsed tokenizer."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.codes.format import CodesFolder
from vlatool.errors import DataError
from vlatool.events import Reporter

COLLAPSED = "data.collapsed_codes"
# Episodes that are read, evenly spaced: enough to see a collapse, cheap for any folder.
_MAX_READ = 8
# A robot that stands still has equal codes too, but not in most images of several episodes.
_MAX_EQUAL, _MIN_IMAGES = 0.9, 8


@dataclass(frozen=True)
class CodesUsage:
    """Use of the codebook in some episodes."""

    images: int = 0  # number of images that were read
    codes_in_use: int = 0  # number of different codes
    entropy: float = 0.0  # entropy of the frequencies of codes, in bits
    equal_images: float = 0.0  # share of the images that have the most frequent codes

    @property
    def problem(self) -> str:
        """Text on a collapsed tokenizer; empty if the codes differ from image to image."""
        if self.images < _MIN_IMAGES or self.equal_images <= _MAX_EQUAL:
            return ""
        return (
            f"{self.equal_images:.0%} of {self.images} images have the same codes: the tokenizer "
            "has collapsed, or the images are equal; look at them with `vlatool inspect --html`, "
            "and train the tokenizer again (`vlatool tokenizer eval` measures it)"
        )

    def facts(self) -> dict[str, Any]:
        """The numbers by name, rounded."""
        return {
            "images_read": self.images,
            "codes_in_use": self.codes_in_use,
            "code_entropy": round(self.entropy, 3),
            "equal_images": round(self.equal_images, 4),
        }


def usage_of(folder: CodesFolder) -> CodesUsage:
    """Use of the codebook in at most 8 episodes; those that cannot be read are left out."""
    names, rows = folder.episodes(), list[Any]()
    for index in np.unique(np.linspace(0, len(names) - 1, _MAX_READ).round().astype(int)):
        try:
            rows.append(folder.read(names[index]).codes)
        except (DataError, IndexError):  # reported by verify; there are no episodes
            continue
    if not rows:
        return CodesUsage()
    codes = np.concatenate(rows)
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    most = int(np.unique(codes, axis=0, return_counts=True)[1].max())
    entropy = float(-(shares * np.log2(shares)).sum())
    return CodesUsage(len(codes), len(counts), entropy, most / len(codes))


def warn_of_collapse(folder: CodesFolder, reporter: Reporter) -> CodesUsage:
    """Use of the codebook; a warning if the tokenizer has collapsed."""
    usage = usage_of(folder)
    if usage.problem:
        reporter.warn(COLLAPSED, f"{folder.path}: {usage.problem}")
    return usage
