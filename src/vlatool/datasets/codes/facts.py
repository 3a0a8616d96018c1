"""Report of a folder of codes, and its page.

Legend: N images of an episode, K codes of an image, V size of the codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.datasets.codes.layout import (
    CHECKS_NAME,
    COLLAPSED,
    IMAGES_NAME,
    CodesFolder,
    EpisodeCodes,
    check_images,
    usage_of,
)
from vlatool.episode import Array
from vlatool.events import counted
from vlatool.media.images import file_view
from vlatool.report.facts import (
    Bars,
    Code,
    Figure,
    Figures,
    Fold,
    PageRequest,
    Part,
    Problems,
    Report,
    Section,
    Table,
    Text,
    Tiles,
    evenly_spaced,
    notes,
)
from vlatool.report.text import indices_text
from vlatool.storage.uri import can_list

_DIGEST = 12
# Most episodes that a page reads.
_MAX_READ = 100
_BARS = 64
_MOST_USED = 12
_UNUSED_RANGES = 200
# Largest side of a check image on a page, in pixels.
_CHECK_SIZE = 520


def inspect(location: Path) -> Report:
    """Reads the manifest and the codes of the first episode; counts images without a manifest."""
    folder = CodesFolder.open(location)
    findings = Problems()
    episodes = folder.episodes()
    manifest = folder.manifest
    first = 0
    if episodes:
        codes = findings.read(folder.read, episodes[0])
        first = 0 if codes is None else len(codes.stems)
    usage = usage_of(folder)
    if usage.problem:
        findings.append({"code": COLLAPSED, "message": usage.problem})
    images = manifest.pictures
    if not folder.has_manifest:
        images = sum(len(folder.stems(episode)) for episode in episodes[1:]) + first
    summary = {
        "codes": f"{manifest.codes_per_picture} per image, codebook of {manifest.codebook_size}",
        "used": f"{usage.codes_in_use} of the codebook, entropy {usage.entropy:.2f} bits, "
        f"{usage.equal_images:.1%} of the images with the same codes (of {usage.images} read)",
        "tokenizer": manifest.tokenizer or "unknown",
        "digest": manifest.tokenizer_digest[:_DIGEST],
        "precision": manifest.precision,
    }
    return Report(
        kind="codes",
        headline=f"codes of {counted(images, 'image')} in {counted(len(episodes), 'episode')}, "
        f"{folder.layout}",
        facts={
            "layout": folder.layout,
            "episodes": len(episodes),
            "pictures": images,
            "codes_per_picture": manifest.codes_per_picture,
            "codebook_size": manifest.codebook_size,
            "tokenizer": manifest.tokenizer,
            "tokenizer_digest": manifest.tokenizer_digest,
            "precision": manifest.precision,
            **usage.facts(),
        },
        summary=summary,
        findings=findings,
        page=partial(_page, folder, images),
    )


@dataclass
class _Usage:
    """Use of the codes in the episodes that were read."""

    counts: Array  # number of uses of each code [V]
    at: Array  # codes that each position of an image has, bool [K, V]
    # Episodes that were read.
    episodes: list[EpisodeCodes] = field(default_factory=list[EpisodeCodes])

    def add(self, codes: EpisodeCodes) -> None:
        self.counts += np.bincount(codes.codes.reshape(-1), minlength=len(self.counts))
        for position, column in enumerate(codes.codes.T):
            self.at[position, column] = True
        self.episodes.append(codes)


def _page(folder: CodesFolder, images: int, request: PageRequest) -> list[Section]:
    """Page with the use of the codes of at most 100 episodes."""
    names = folder.episodes()
    manifest = folder.manifest
    problems = Problems()
    size = manifest.codebook_size
    per_image = manifest.codes_per_picture
    usage = _Usage(np.zeros(size, np.int64), np.zeros((per_image, size), bool))
    for index in evenly_spaced(len(names), _MAX_READ):
        codes = problems.read(folder.read, names[index])
        if codes is not None:
            usage.add(codes)
    total = int(usage.counts.sum())
    used = int((usage.counts > 0).sum())
    info = {
        "images": f"{images:,}",
        "episodes": f"{len(names):,}",
        "codes per image": f"{per_image:,}",
        "codebook": f"{size:,}",
        "codes in use": f"{used / size:.1%}" if total else "",
        "perplexity": f"{_perplexity(usage.counts):,.0f}" if total else "",
        "layout": folder.layout,
    }
    rows = {
        "tokenizer": manifest.tokenizer or "unknown",
        "digest": Code(manifest.tokenizer_digest[:_DIGEST] or "unknown"),
        "precision": manifest.precision,
        "equal to fp32": f"{manifest.agreement:.2%}",
    }
    shown = [(name, value) for name, value in rows.items() if value]
    read = len(usage.episodes)
    part = ""
    if read < len(names):
        part = f"Codes of {read} of {counted(len(names), 'episode')}, evenly spaced."
    overview = [Tiles(info), Text(part, "note"), *notes(problems), Table((), shown)]
    return [
        Section("Overview", overview),
        Section("Check images", _checks(folder, request.samples)),
        Section("Use of the codebook", _usage_parts(usage, used) if total else []),
        Section("Images and their codes", _examples(folder, usage.episodes, request.samples)),
    ]


def _perplexity(counts: Array) -> float:
    """Number of equally frequent codes with the same entropy."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _usage_parts(usage: _Usage, used: int) -> list[Part]:
    size = len(usage.counts)
    total = int(usage.counts.sum())
    step = -(-size // _BARS)
    uses = np.pad(usage.counts, (0, -size % step)).reshape(-1, step).sum(axis=1)
    unused = np.flatnonzero(usage.counts == 0).tolist()
    most = np.argsort(-usage.counts, kind="stable")[: min(_MOST_USED, used)].tolist()
    top: list[tuple[object, ...]] = []
    for number in most:
        count = usage.counts[number]
        top.append((number, f"{count:,}", f"{count / total:.2%}"))
    text = f"{counted(used, 'code')} of {size:,} in use; {counted(len(unused), 'code')} unused"
    distinct = usage.at.sum(axis=1)
    return [
        Text(f"{text}."),
        Bars("Uses of each code", uses, 0, step, "code"),
        Fold("Unused codes", [Text(indices_text(unused, _UNUSED_RANGES), "code")]),
        Table(("code", "uses", "share"), top, "Most frequent"),
        Bars("Different codes at each position of an image", distinct, 0, 1, "position"),
    ]


def _checks(folder: CodesFolder, count: int) -> list[Part]:
    """Some check images, which show an image beside its reconstruction."""
    names = check_images(folder.path)
    figures: list[Figure] = []
    for index in evenly_spaced(len(names), count):
        caption = names[index].partition("/")[2]
        view = file_view(folder.path / names[index])
        figures.append(view.figure(caption, names[index], largest=_CHECK_SIZE))
    return [Figures(figures, f"from {CHECKS_NAME}/: recorded, and from its codes", size="wide")]


def _examples(folder: CodesFolder, episodes: Sequence[EpisodeCodes], count: int) -> list[Part]:
    """Some images with their codes; without the folder of the images, only codes."""
    images = folder.path.parent / IMAGES_NAME
    has_images = can_list(images) and images.is_dir()
    parts: list[Part] = []
    chosen = evenly_spaced(len(episodes), count)
    for order, index in enumerate(chosen):
        codes = episodes[index]
        row = (2 * order + 1) * len(codes.stems) // (2 * len(chosen))
        stem = codes.stems[row]
        if has_images:
            view = file_view(images / codes.episode / f"{stem}.png")
            parts.append(Figures([view.figure(stem)]))
        text = " ".join(map(str, codes.codes[row].tolist()))
        parts.append(Text(f"{stem}: {text}", "code"))
    return parts
