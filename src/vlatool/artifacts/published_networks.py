"""Weight files of published image networks: names and checksums.

Most names contain the first digits of the SHA-256; of the LPIPS heads an MD5 is known.
Source: reference/titok 4.4, 5.4.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vlatool.errors import DataError
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.tree import sha256_of


@dataclass(frozen=True)
class PublishedFile:
    name: str
    sha256: str = ""  # first digits of its SHA-256; empty if only `md5` is known
    md5: str = ""


CONVNEXT_S = PublishedFile("convnext_small-0c510722.pth", sha256="0c510722")
VGG16 = PublishedFile("vgg16-397923af.pth", sha256="397923af")
LPIPS_HEADS = PublishedFile("vgg.pth", md5="d507d7349b931f0638a25a48a722f98a")
INCEPTION = PublishedFile("pt_inception-2015-12-05-6726825d.pth", sha256="6726825d")


@dataclass(frozen=True)
class NetworkFile:
    """Local file of weights."""

    path: Path
    sha256: str  # SHA-256 of its bytes


def find_network(weights: Path, published: PublishedFile) -> NetworkFile:
    """Weight file of a network: `weights` itself, or the published name in that folder.

    In a folder `NAME.safetensors` is accepted too.
    """
    stem = published.name.rpartition(".")[0]
    names = (published.name, f"{stem}.safetensors")
    candidates = [weights / name for name in names] if weights.is_dir() else [weights]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise DataError.at(
            weights,
            f"{published.name} does not exist",
            hint="give that file, or a folder that holds it; weights are not downloaded",
            code="data.no_network_weights",
            file=published.name,
        )
    network = NetworkFile(path, sha256_of(path))
    if path.name == published.name and not _is_as_published(network, published):
        raise DataError.at(
            path,
            "differs from the file published under this name",
            hint="copy or download it again, or rename the file if the weights are your own",
            code="data.other_network_weights",
            sha256=network.sha256,
        )
    return network


def _is_as_published(network: NetworkFile, published: PublishedFile) -> bool:
    if published.md5:
        with open_file(network.path) as file:
            return (
                hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                == published.md5
            )
    return network.sha256.startswith(published.sha256)
