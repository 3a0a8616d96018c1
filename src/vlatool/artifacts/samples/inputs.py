"""Inputs of samples: windows, codes of their images, and the action tokenizer.

Legend: Q future images, K codes of an image. Source: reference/future-vla 5.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlatool.artifacts import profile as profiles
from vlatool.artifacts.codes.format import (
    IMAGES_NAME,
    JSON_NAME,
    PACKED_NAME,
    CodesFolder,
    CodesManifest,
)
from vlatool.artifacts.fast.format import is_fast, read_fast
from vlatool.artifacts.manifest import parse_values
from vlatool.artifacts.samples.episode import Conversation, distinct_windows
from vlatool.artifacts.samples.format import FAST_NAME, SamplesFolder
from vlatool.artifacts.windows.format import Kind, Window, read_windows
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.transforms.action_tokenizer import ActionTokenizer, EncodedActions


def stripped(window: Window) -> Window:
    """The window, trailing whitespace of its instruction removed, as in samples."""
    task = window.task.rstrip()
    return window if task == window.task else replace(window, task=task)


def encode_actions(
    tokenizer: ActionTokenizer, profile: profiles.NormalizationProfile, windows: Sequence[Window]
) -> EncodedActions:
    """Action ids of each window."""
    with np.errstate(over="ignore"):  # the tokenizer raises on infinity
        chunks = profile.normalize(np.array([window.actions for window in windows]))
    return tokenizer.encode_counted(chunks)


def codes_by_path(codes: CodesFolder, windows: Sequence[Window]) -> Mapping[str, Array]:
    """Codes uint16 [K] by the path of each future image; raises DataError if they are unusable."""
    stems_of: dict[str, dict[str, str]] = {}
    for path in dict.fromkeys(path for window in windows for path in window.future):
        folder, _, name = path.removeprefix(f"{IMAGES_NAME}/").rpartition("/")
        stems_of.setdefault(folder, {})[path] = name.rpartition(".")[0]
    by_path: dict[str, Array] = {}
    for folder, stems in stems_of.items():
        episode = codes.read(folder, stems.values())
        by_path |= {path: episode.codes[episode.row_of[stem]] for path, stem in stems.items()}
    return by_path


def read_tokenizer(
    folder: SamplesFolder,
) -> tuple[ActionTokenizer, profiles.NormalizationProfile] | None:
    """Action tokenizer beside the samples and profile of the manifest; None if there is none."""
    path = folder.path / FAST_NAME
    document = folder.document
    recorded = dict(document.get("profile") or {})
    fast = document.get("fast") or {}
    if not recorded or not is_fast(path):
        return None
    digest = recorded.pop("digest", "")
    profile = profiles.parse_profile(recorded, f"{folder.path}: profile of the manifest")
    tokenizer = read_fast(path)
    if (fast.get("digest"), digest) != (tokenizer.digest, profile.digest):
        named = "profile" if digest != profile.digest else "action tokenizer"
        raise DataError.at(
            path,
            f"the {named} is not the one whose digest the manifest has",
            hint="copy the samples again, or build them again",
            code="data.mismatch",
        )
    if profiles.has_profile(path):
        profiles.check_same_profile(profile, profiles.read_profile(str(path)))
    return tokenizer, profile


def find_codes(folder: SamplesFolder) -> CodesFolder | None:
    """Codes beside the images of samples, of the tokenizer in the manifest; None if absent."""
    try:
        made_with = parse_values(CodesManifest, dict(folder.document.get("codes") or {}))
    except ValueError:
        return None  # the check of the manifest reports it
    folders = (CodesFolder.find(folder.images_root / name) for name in (PACKED_NAME, JSON_NAME))
    for codes in folders:
        if codes is None or codes.is_unfinished:
            continue
        if codes.manifest.identity() == made_with.identity():
            return codes
    return None


class _Key(NamedTuple):
    """Identity of a window in its episode."""

    kind: Kind
    task: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeInputs:
    """Numbers of the windows of an episode, computed again; None where an input is not there."""

    # map from kind, instruction and past images to the index of distinct windows
    windows: Mapping[_Key, int]
    future: Sequence[tuple[str, ...]]  # Paths of the future images of each distinct window
    ids: Sequence[Sequence[int]] | None  # action ids of each distinct window
    codes: Mapping[str, Array] | None  # uint16 [K] by the path of each future image

    @classmethod
    def read(
        cls,
        path: Path,
        fast: tuple[ActionTokenizer, profiles.NormalizationProfile] | None,
        codes: CodesFolder | None,
    ) -> "EpisodeInputs":
        """Reads a file of windows and encodes them."""
        windows = [stripped(window) for window in read_windows(path)]
        distinct, indices = distinct_windows(windows)
        keys = (_Key(window.kind, window.task, window.images) for window in windows)
        try:
            ids = encode_actions(*fast, distinct).ids if fast and distinct else None
        except ValueError as error:
            raise DataError.at(path, error, code="data.mismatch") from None
        return cls(
            dict(zip(keys, indices, strict=True)),
            [window.future for window in distinct],
            ids,
            None if codes is None else codes_by_path(codes, distinct),
        )

    def problem(self, talk: Conversation, images: Sequence[str]) -> tuple[str, str] | None:
        """Difference of a sample from its window: finding code and reason; None without one;
        `images`: Paths of its past images, relative to the folder of windows.
        """
        index = self.windows.get(_Key(talk.kind, talk.task, tuple(images)))
        if index is None:
            return "no_window", "no window has its kind, instruction and images"
        if self.ids is not None and tuple(self.ids[index]) != talk.action_ids:
            return "other_action_ids", "its action ids are not those of the actions of its window"
        if self.codes is None:
            return None
        expected = [self.codes[path] for path in self.future[index]]
        if not np.array_equal(np.array(expected), talk.codes):
            return "other_codes", "its codes are not those of the future images of its window"
        return None
