"""HTML pages of `inspect --html`: the contents of a location with images.

Functions that write a page raise StorageError if it cannot be written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.artifacts.shards import manifest
from vlatool.artifacts.shards.format import ShardFolder
from vlatool.artifacts.shards.manifest import Shard
from vlatool.artifacts.tar import OpenShard, open_shard
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError
from vlatool.inspection.episode_view import view_episode, view_episode_tar
from vlatool.inspection.report import Problems
from vlatool.inspection.sample_view import view_sample
from vlatool.inspection.shards import ShardReport, ShardsReport
from vlatool.inspection.source import SourceReport
from vlatool.pages.cards import episode_section, sample_section
from vlatool.pages.layout import GENERATOR, Section, note, page
from vlatool.pages.overview import shard_sections, shards_sections, source_sections
from vlatool.sources.base import FormatReader
from vlatool.storage.atomic import write_text


@dataclass(frozen=True)
class PageRequest:
    """Options of a page.

    Attributes:
        title: Location as the user typed it.
        episodes: Number of raw episodes to show.
        samples: Number of training samples to show.
        tokenizer: Location of the tokenizer that decodes codes to images; empty: no such images.
    """

    title: str
    episodes: int
    samples: int
    tokenizer: str = ""


_HEAD_BYTES = 1000


def check_target(path: Path) -> None:
    """Raises an error if a path cannot be the file of a page; called before anything is read.

    Raises:
        UsageError: The path is a folder, or a file that is not a page of an earlier run.
    """
    target_error = partial(UsageError, code="usage.bad_target", details={"path": str(path)})
    if not path.name or path.is_dir():
        raise target_error(
            f"--html {path}: is a folder",
            hint="give the name of the file to write, such as page.html",
        )
    if path.is_file():
        with path.open("rb") as file:
            is_page = GENERATOR.encode() in file.read(_HEAD_BYTES)
        if not is_page:
            raise target_error(
                f"--html {path}: exists and is not a page of an earlier inspect",
                hint="choose another name, such as page.html",
            )


def write_source_page(
    report: SourceReport,
    reader: FormatReader,
    refs: Sequence[EpisodeRef],
    path: Path,
    request: PageRequest,
) -> None:
    """Writes the page of a raw source to `path`, with some of the episodes `refs`."""
    broken = {episode["episode"] for episode in report.broken}
    whole = [ref for ref in refs if ref.id not in broken]
    episodes = [
        card(ref.id, lambda ref=ref: episode_section(view_episode(reader.read(ref))))
        for ref in (whole[i] for i in evenly_spaced(len(whole), request.episodes))
    ]
    title = f"Episodes ({len(episodes)} of {len(whole)})"
    sections = [*source_sections(report), *group(title, episodes)]
    write_text(path, page(request.title, report.headline(), sections))


def write_shards_page(
    report: ShardsReport, location: Path, path: Path, request: PageRequest
) -> None:
    """Writes the page of the training data at a location to `path`."""
    folder = ShardFolder.open(location)
    samples = list(_samples(folder.shards(), request.samples, report.origin.options))
    findings = Problems()  # not shown: the report has them already
    statistics = findings.read(folder.statistics) or {}
    episodes = (findings.read(folder.episodes.shards) if folder.episodes else None) or []
    sections = [
        *shards_sections(report, statistics, [episode.num_sequences for episode in episodes]),
        *group(f"Samples ({len(samples)} of {report.samples})", samples),
    ]
    write_text(path, page(request.title, report.headline(), sections))


def write_shard_page(report: ShardReport, tar_path: Path, path: Path, request: PageRequest) -> None:
    """Writes the page of one shard, or of the tar of one episode, to `path`."""
    # A shard without its folder has no options.
    options = Problems().read(ShardFolder(tar_path.parent / manifest.NAME).options) or {}
    with open_shard(tar_path) as tar:
        episode = view_episode_tar(tar, options)
        sections = shard_sections(report)
        if episode is not None:
            sections.append(episode_section(episode, is_under=False))
        total = len(tar.keys)
        samples = [_sample(tar, i, options) for i in evenly_spaced(total, request.samples)]
        sections += group(f"Samples ({len(samples)} of {total})", samples)
    kind = "shard" if episode is None else "samples of one episode"
    write_text(path, page(request.title, f"{kind}, {report.samples} samples", sections))


def group(title: str, members: Sequence[Section]) -> list[Section]:
    """Cards under a heading; empty without cards."""
    heading = Section(title, '<p class="quiet">evenly spaced</p>', is_card=False)
    return [heading, *members] if members else []


def card(name: str, make: Callable[[], Section]) -> Section:
    """Card made by `make`, or a card with the error."""
    try:
        return make()
    except DataError as error:
        return Section(name, note(error.message), is_under=True)


def _samples(shards: Sequence[Shard], count: int, options: Mapping[str, Any]) -> Iterator[Section]:
    """Yields cards of samples that are evenly spaced over all shards; opens each shard once."""
    positions = evenly_spaced(sum(shard.num_sequences for shard in shards), count)
    start = 0
    for shard in shards:
        end = start + shard.num_sequences
        in_shard = [position - start for position in positions if start <= position < end]
        start = end
        if not in_shard:
            continue
        try:
            with open_shard(shard.path) as tar:
                for position in in_shard:
                    yield _sample(tar, position, options)
        except DataError as error:
            yield Section(shard.path.name, note(error.message), is_under=True)


def _sample(tar: OpenShard, position: int, options: Mapping[str, Any]) -> Section:
    name = tar.path.name
    if position >= len(tar.keys):
        reason = tar.damage or f"the shard has {len(tar.keys)} samples"
        text = f"{name}: there is no sample {position}: {reason}"
        return Section(f"{name}, sample {position}", note(text), is_under=True)
    key = tar.keys[position]
    return card(key, lambda: sample_section(view_sample(tar, key, options)))


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` positions in 0..total-1: the centers of equal parts."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
