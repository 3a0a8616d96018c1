"""Report of a folder of codes."""

from pathlib import Path

import numpy as np

from vlatool.artifacts.codes.format import CodesFolder
from vlatool.pages.report import Problems, Report

_DIGEST = 12


def inspect(location: Path) -> Report:
    """Reads the manifest and the codes of the first episode; counts images without a manifest."""
    folder, findings = CodesFolder.open(location), Problems()
    episodes, manifest = folder.episodes(), folder.manifest
    used, first = 0, 0
    if episodes:
        codes = findings.read(folder.read, episodes[0])
        used, first = (0, 0) if codes is None else (len(np.unique(codes.codes)), len(codes.stems))
    images = manifest.pictures
    if not folder.has_manifest:
        images = sum(len(folder.stems(episode)) for episode in episodes[1:]) + first
    return Report(
        kind="codes",
        headline=f"codes of {images} images in {len(episodes)} episodes, {folder.layout}",
        facts={
            "layout": folder.layout,
            "episodes": len(episodes),
            "pictures": images,
            "codes_per_picture": manifest.codes_per_picture,
            "codebook_size": manifest.codebook_size,
            "tokenizer": manifest.tokenizer,
            "tokenizer_digest": manifest.tokenizer_digest,
            "precision": manifest.precision,
            "used_codes": used,
        },
        summary={
            "codes": f"{manifest.codes_per_picture} per image, codebook of "
            f"{manifest.codebook_size}",
            "used": f"{used} of the codebook, in the first episode",
            "tokenizer": manifest.tokenizer or "unknown",
            "digest": manifest.tokenizer_digest[:_DIGEST],
            "precision": manifest.precision,
        },
        findings=findings,
    )
