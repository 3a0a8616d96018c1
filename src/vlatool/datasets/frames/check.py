"""Checks of a folder of frames: the files of the run, each tar with its index, and its contents."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.datasets.frames.layout import FramesEpisode, FramesFolder
from vlatool.datasets.lbm.check import check_index
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, error
from vlatool.media.images import decoded_size
from vlatool.media.tar import scan_tar
from vlatool.recordings.check import CheckOptions, check_record_and_files

_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"

FRAMES = FindingCodes(
    "frames",
    broken_manifest=error("frames.json cannot be read.", _WRITE_AGAIN),
    no_config=error("preprocessing_config.yaml is missing or cannot be read.", _WRITE_AGAIN),
    missing_episode=error("The tar of an episode is missing.", _WRITE_AGAIN),
    broken_tar=error("The tar of an episode is cut off or damaged.", _WRITE_AGAIN),
    count_mismatch=error("A tar has another number of frames than frames.json says.", _WRITE_AGAIN),
    broken_numbers=error("The numbers of an episode cannot be read.", _WRITE_AGAIN),
    broken_image=error("An image is missing or cannot be decoded.", _WRITE_AGAIN),
)
FINDINGS: tuple[FindingCodes, ...] = (FRAMES,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of frames; of some frames, or all, the images are decoded."""
    has_ended = yield from check_record_and_files(location, location, options)
    if not has_ended:
        return
    folder = FramesFolder(location)
    try:
        episodes = folder.episodes
    except DataError as error:
        yield FRAMES("broken_manifest", error.message, path=error.details["path"])
        return
    try:
        folder.options()
    except DataError as error:
        yield FRAMES("no_config", error.message, path=str(location))
    total = sum(episode.frames for episode in episodes)
    before = 0
    with options.reporter.progress("episodes", len(episodes), "episodes") as bar:
        for episode in episodes:
            selected: list[int] = []
            for frame in range(episode.frames):
                if options.selects(before + frame, total):
                    selected.append(frame)
            yield from _check_episode(folder, episode, selected, options)
            options.counts.add(episodes=1, samples=episode.frames)
            before += episode.frames
            bar.advance()


def _check_episode(
    folder: FramesFolder, episode: FramesEpisode, frames: list[int], options: CheckOptions
) -> Iterator[Finding]:
    """Checks the tar of an episode; `frames`: those whose images are decoded."""
    tar = folder.tar(episode.id)
    if not tar.path.is_file():
        yield FRAMES.at("missing_episode", tar.path, "is missing")
        return
    scan = scan_tar(tar.path)
    for problem in scan.problems:
        yield FRAMES.at("broken_tar", tar.path, problem.message)
    if scan.problems:
        return
    yield from check_index(tar.path, scan)
    try:
        content = tar.episode(episode.id)
    except DataError as error:
        yield FRAMES("broken_numbers", error.message, path=str(tar.path))
        return
    stored = len(scan.samples) - 1 if content.cameras else content.num_frames
    if not stored == content.num_frames == episode.frames:
        message = f"has {stored} frames, the manifest says {episode.frames}"
        yield FRAMES.at("count_mismatch", tar.path, message)
        return
    sources = [*content.cameras.values(), *content.depth.values(), *content.labels.values()]
    for frame in frames:
        for source in sources:
            try:
                decoded_size(source.encoded(frame) or b"")
                options.counts.add(pictures=1)
            except (DataError, ValueError, OSError) as error:
                yield FRAMES.at("broken_image", tar.path, f"frame {frame}: {error}")
        options.counts.add(samples_read=1)
