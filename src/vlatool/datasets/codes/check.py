"""Checks of a folder of codes: the files of the run, the codes of every image, and their totals."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.datasets.codes import layout as codes_layout
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.recordings.check import CheckOptions, check_record_and_files
from vlatool.storage.tree import file_names
from vlatool.storage.uri import can_list

_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"

CODES = FindingCodes(
    "codes",
    no_manifest=info("manifest.json is missing, as in published folders."),
    broken_manifest=error("manifest.json cannot be read.", _WRITE_AGAIN),
    broken=error(
        "The codes of an image are too few, out of range or not integers.",
        "encode the images of the episode again",
    ),
    other_tokenizer=error(
        "The codes of an episode are not from the tokenizer that manifest.json names.",
        "encode all images again with one tokenizer",
    ),
    missing=error("An image has no codes.", "encode the images of the episode again"),
    no_picture=warning("An image that has codes is missing.", _WRITE_AGAIN),
    count_mismatch=error(
        "The number of images with codes differs from manifest.json.", _WRITE_AGAIN
    ),
    digest_mismatch=error("The digest of the codes differs from manifest.json.", _WRITE_AGAIN),
)


_IMAGE_SUFFIX = ".png"


FINDINGS = (CODES,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    has_ended = yield from check_record_and_files(location, location, options)
    if not has_ended:
        return
    try:
        folder = codes_layout.CodesFolder.find(location)
    except DataError as error:
        yield CODES("broken_manifest", error.message, path=error.details["path"])
        return
    if folder is None or not can_list(location):
        return
    if not folder.has_manifest:
        path = location / codes_layout.MANIFEST_NAME
        yield CODES.at("no_manifest", path, "is missing")
    yield from _FolderCheck(folder, options).findings()


class _FolderCheck:
    def __init__(self, folder: codes_layout.CodesFolder, check: CheckOptions) -> None:
        self._folder = folder
        self._check = check
        self._images = 0

    def findings(self) -> Iterator[Finding]:
        episodes = self._folder.episodes()
        has_no_error = True
        with self._check.reporter.progress("episodes", len(episodes), "episodes") as bar:
            for episode in episodes:
                for finding in self._episode(episode):
                    has_no_error = has_no_error and finding.severity != "error"
                    yield finding
                bar.advance(pictures=self._images)
        self._check.counts.add(episodes=len(episodes), pictures=self._images)
        if self._folder.has_manifest and has_no_error:
            yield from self._totals(len(episodes))

    def _episode(self, episode: str) -> Iterator[Finding]:
        if self._check.is_quick and self._folder.layout == "json":
            stems = self._folder.stems(episode)
            self._images += len(stems)
        else:
            stems: list[str] = []
            is_known = False
            for entry in self._read(episode):
                if isinstance(entry, Finding):
                    yield entry
                else:
                    stems += entry.stems
                    is_known = True
            self._images += len(stems)
            if not (is_known or self._files(episode)):
                return  # no image of the episode is known
        yield from self._against_images(episode, stems)

    def _read(self, episode: str) -> Iterator[Finding | codes_layout.EpisodeCodes]:
        """Yields the codes of an episode, or findings of its broken files and the other codes."""
        try:
            yield self._folder.read(episode)
        except DataError as error:
            is_packed = self._folder.layout == "packed"
            if is_packed or error.code == "data.wrong_digest":
                yield _finding(error, episode)
            for stem in () if is_packed else self._folder.stems(episode):
                try:
                    codes = self._folder.read_image(episode, stem)
                    yield codes_layout.EpisodeCodes(episode, (stem,), codes[None])
                except DataError as broken:
                    yield _finding(broken, episode)

    def _against_images(self, episode: str, stems: list[str]) -> Iterator[Finding]:
        """Compares codes with images, if both folders are next to each other."""
        images = self._folder.path.parent / codes_layout.IMAGES_NAME
        if not images.is_dir():
            return
        names = file_names(images / episode)
        image_stems = {name.removesuffix(_IMAGE_SUFFIX) for name in names}
        coded_stems = {*stems, *self._files(episode)}
        for stem in sorted(image_stems - coded_stems):
            message = f"{self._folder.path_of(episode)}: has no codes of image {stem}"
            yield CODES("missing", message, episode=episode, path=str(images / episode))
        for stem in sorted(coded_stems - image_stems):
            message = f"{self._folder.path_of(episode)}: image {stem} is not in {images / episode}"
            yield CODES("no_picture", message, episode=episode)

    def _files(self, episode: str) -> list[str]:
        """Stems of the images that have a file of codes each, valid or not."""
        return self._folder.stems(episode) if self._folder.layout == "json" else []

    def _totals(self, episodes: int) -> Iterator[Finding]:
        manifest = self._folder.manifest
        location = {"path": str(self._folder.path / codes_layout.MANIFEST_NAME)}
        counts = (episodes, self._images)
        if counts != (manifest.episodes, manifest.pictures):
            message = (
                f"{counted(manifest.episodes, 'episode')} and {counted(manifest.pictures, 'image')}"
            )
            message = f"{location['path']}: lists {message}, found {counts[0]} and {counts[1]}"
            yield CODES("count_mismatch", message, **location)


def _finding(error: DataError, episode: str) -> Finding:
    name = "broken"
    if error.code == "data.missing":
        name = "missing"
    elif error.code == "data.wrong_digest":
        name = "digest_mismatch"
    elif error.details.get("finding") == "other_tokenizer":
        name = "other_tokenizer"
    return CODES(name, error.message, episode=episode, path=error.details["path"])
