"""Weight files of published picture networks: their names, and how they are known to be whole.

The first digits of the SHA-256 stand in most names; of the LPIPS heads an MD5 is known.
Source: reference/titok 4.4, 5.4.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vlatool.errors import DataError
from vlatool.storage.tree import sha256_of


@dataclass(frozen=True)
class PublishedFile:
    """A file as it was published.

    Attributes:
        name: Its name.
        sha256: The first digits of its SHA-256; empty where only `md5` is known.
        md5: Its MD5.
    """

    name: str
    sha256: str = ""
    md5: str = ""


CONVNEXT_S = PublishedFile("convnext_small-0c510722.pth", sha256="0c510722")
VGG16 = PublishedFile("vgg16-397923af.pth", sha256="397923af")
LPIPS_HEADS = PublishedFile("vgg.pth", md5="d507d7349b931f0638a25a48a722f98a")
INCEPTION = PublishedFile("pt_inception-2015-12-05-6726825d.pth", sha256="6726825d")


@dataclass(frozen=True)
class NetworkFile:
    """A file of weights that was found.

    Attributes:
        path: Where it is.
        sha256: Of its bytes.
    """

    path: Path
    sha256: str


def find_network(weights: Path, published: PublishedFile) -> NetworkFile:
    """The file of a network at a file, whatever its name, or in a folder by the published name.

    In a folder `NAME.safetensors` will do as well.

    Raises:
        DataError: There is none, or one of the published name has other bytes.
    """
    stem = published.name.rpartition(".")[0]
    names = (published.name, f"{stem}.safetensors")
    candidates = [weights / name for name in names] if weights.is_dir() else [weights]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise DataError(
            f"{weights}: {published.name} is not there",
            hint="give that file, or a folder that holds it; no weights are downloaded",
            code="data.no_network_weights",
            details={"path": str(weights), "file": published.name},
        )
    network = NetworkFile(path, sha256_of(path))
    if path.name == published.name and not _is_as_published(network, published):
        raise DataError(
            f"{path}: has other bytes than were published under this name",
            hint="copy or download it again; give weights of your own another name",
            code="data.other_network_weights",
            details={"path": str(path), "sha256": network.sha256},
        )
    return network


def _is_as_published(network: NetworkFile, published: PublishedFile) -> bool:
    if published.md5:
        with network.path.open("rb") as file:
            return (
                hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                == published.md5
            )
    return network.sha256.startswith(published.sha256)
