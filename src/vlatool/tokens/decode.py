"""Decodes codes to images, with the visual tokenizer that made them.

Legend of shapes: N images of an episode, B images of a batch, K codes of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlatool.datasets.codes.layout import JSON_SUFFIX, PACKED_SUFFIX, CodesFolder, CodesManifest
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.jobs.files import digests_below, folder_entry
from vlatool.jobs.job import InputState
from vlatool.jobs.journal import Receipt
from vlatool.media.images import encode_png
from vlatool.models.tokenizer import OpenTokenizer, open_tokenizer, rank_device
from vlatool.storage.atomic import atomic_folder


@dataclass(frozen=True)
class SelectedCodes:
    folder: CodesFolder
    episodes: Sequence[str]  # episodes to decode
    stems: tuple[str, ...] | None = None  # stems of the images to decode; None for all


def select_codes_of(tokenizer: OpenTokenizer, path: Path) -> SelectedCodes:
    """Selects the codes of a folder, or of one of its files."""
    if path.suffix not in (JSON_SUFFIX, PACKED_SUFFIX) or path.is_dir():
        folder = CodesFolder.open(path)
        selection = SelectedCodes(folder, folder.episodes())
    elif path.suffix == JSON_SUFFIX:
        folder = _folder_of(path.parent.parent, CodesManifest(layout="json"))
        selection = SelectedCodes(folder, [path.parent.name], (path.stem,))
    else:
        folder = _folder_of(path.parent, CodesManifest(layout="packed"))
        selection = SelectedCodes(folder, [path.stem])
    if not selection.episodes:
        raise DataError(f"{path}: holds no codes", code="data.missing")
    return replace(selection, folder=_checked(tokenizer, folder))


def _folder_of(root: Path, assumed: CodesManifest) -> CodesFolder:
    """The folder to which a file of codes belongs."""
    folder = CodesFolder.find(root)
    if folder is None or folder.layout != assumed.layout:
        return CodesFolder(root, assumed.layout, assumed, has_manifest=False)
    return folder


def _checked(tokenizer: OpenTokenizer, folder: CodesFolder) -> CodesFolder:
    """Checks that the tokenizer made the codes; without a manifest, this is assumed."""
    if folder.has_manifest:
        tokenizer.check_tokenizer_of(folder.path, folder.manifest.encoding_info())
        return folder
    network = tokenizer.network
    manifest = replace(
        folder.manifest,
        codes_per_picture=network.codes_per_image,
        codebook_size=network.codebook_size,
    )
    return replace(folder, manifest=manifest)


@dataclass(frozen=True)
class EpisodeDecoder:
    """Writes the images of an episode."""

    tokenizer: OpenTokenizer  # tokenizer that made the codes
    codes: SelectedCodes
    output: Path  # the output folder
    batch_size: int  # most images on the device at once

    def __call__(self, episode: str) -> Receipt:
        """Writes a PNG per image."""
        of_episode = self.codes.folder.read(episode, self.codes.stems)
        with atomic_folder(self.output / episode) as partial:
            for start in range(0, len(of_episode.stems), self.batch_size):
                rows = slice(start, start + self.batch_size)
                codes = torch.from_numpy(of_episode.codes[rows].astype(np.int64))
                images = decoded(self.tokenizer, codes)
                for stem, pixels in zip(of_episode.stems[rows], images, strict=True):
                    (partial / f"{stem}.png").write_bytes(encode_png(pixels))
            files = digests_below(partial)
        entry = folder_entry(episode, files)
        return Receipt(episode, counts={"pictures": len(of_episode.stems)}, files=(entry,))

    def state(self, episode: str) -> InputState:
        return self.codes.folder.state(episode)


def decoded(tokenizer: OpenTokenizer, codes: torch.Tensor) -> UInt8Array:
    """Images uint8 [B, S, S, 3] of codes int64 [B, K]."""
    return tokenizer.network.decode(codes.to(tokenizer.device)).cpu().numpy()


def open_decoder(
    location: str, folder: Path, codes: Mapping[str, Any]
) -> Callable[[Array], UInt8Array]:
    """Function that decodes codes int64 [B, K] to images uint8 [B, S, S, 3]."""
    tokenizer = open_tokenizer(location, rank_device())
    tokenizer.check_codebook()
    tokenizer.check_decoder()
    tokenizer.check_tokenizer_of(folder, codes)
    return lambda values: decoded(tokenizer, torch.from_numpy(values))
