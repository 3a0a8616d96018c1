"""Checks of a folder of codes: the files of the run, the codes of every picture, and their sums."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.artifacts.codes import MANIFEST_NAME, EpisodeCodes, digest_of_all
from vlatool.artifacts.codes_folder import CodesFolder
from vlatool.artifacts.windows import IMAGES_NAME
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.storage.tree import file_names
from vlatool.storage.uri import can_list
from vlatool.verification.check import CheckOptions
from vlatool.verification.findings import CODES
from vlatool.verification.output import check_record_and_files

_IMAGE_SUFFIX = ".png"


def check_codes(location: Path, check: CheckOptions) -> Iterator[Finding]:
    """Everything that is wrong with the codes in a folder."""
    is_ended = yield from check_record_and_files(location, location, check)
    if not is_ended:
        return
    try:
        folder = CodesFolder.find(location)
    except DataError as error:
        yield CODES("broken_manifest", error.message, path=error.details["path"])
        return
    if folder is None or not can_list(location):
        return
    if not folder.has_manifest:
        path = location / MANIFEST_NAME
        yield CODES("no_manifest", f"{path}: is not there", path=str(path))
    yield from _FolderCheck(folder, check).findings()


class _FolderCheck:
    """The checks of one folder, episode by episode."""

    def __init__(self, folder: CodesFolder, check: CheckOptions) -> None:
        self._folder, self._check = folder, check
        self._digests: dict[str, str] = {}
        self._images = 0

    def findings(self) -> Iterator[Finding]:
        """Of every episode, then of their sums."""
        episodes = self._folder.episodes()
        is_whole = True
        with self._check.reporter.progress("episodes", len(episodes), "episodes") as bar:
            for episode in episodes:
                for finding in self._episode(episode):
                    is_whole = is_whole and finding.severity != "error"
                    yield finding
                bar.advance(pictures=self._images)
        self._check.counts.add(episodes=len(episodes), pictures=self._images)
        if self._folder.has_manifest and is_whole:
            yield from self._sums(len(episodes))

    def _episode(self, episode: str) -> Iterator[Finding]:
        if self._check.is_quick and self._folder.layout == "json":
            stems = self._folder.stems(episode)
            self._images += len(stems)
        else:
            found: list[EpisodeCodes] = []
            for one in self._read(episode):
                if isinstance(one, Finding):
                    yield one
                else:
                    found.append(one)
            stems = [stem for one in found for stem in one.stems]
            self._images += len(stems)
            if len(found) == 1:
                self._digests[episode] = found[0].digest
            if not (found or self._files(episode)):
                return  # nothing is known of its pictures
        yield from self._against_images(episode, stems)

    def _read(self, episode: str) -> Iterator[Finding | EpisodeCodes]:
        """The codes; where some are broken, what is wrong with each, and those of the others."""
        try:
            yield self._folder.read(episode)
        except DataError as error:
            if self._folder.layout == "packed":
                yield _finding(error, episode)
                return
            for stem in self._folder.stems(episode):
                try:
                    yield self._folder.read(episode, [stem])
                except DataError as broken:
                    yield _finding(broken, episode)

    def _against_images(self, episode: str, stems: list[str]) -> Iterator[Finding]:
        """Each picture has codes, where the folder lies beside the pictures."""
        images = self._folder.path.parent / IMAGES_NAME
        if not images.is_dir():
            return
        names = file_names(images / episode)
        there = {name.removesuffix(_IMAGE_SUFFIX) for name in names}
        coded = {*stems, *self._files(episode)}
        for stem in sorted(there - coded):
            message = f"{self._folder.place(episode)}: no codes of {stem}"
            yield CODES("missing", message, episode=episode, path=str(images / episode))
        for stem in sorted(coded - there):
            message = f"{self._folder.place(episode)}: {stem} is no picture in {images / episode}"
            yield CODES("no_picture", message, episode=episode)

    def _files(self, episode: str) -> list[str]:
        """Pictures whose codes are in files of their own, whatever is in them."""
        return self._folder.stems(episode) if self._folder.layout == "json" else []

    def _sums(self, episodes: int) -> Iterator[Finding]:
        manifest = self._folder.manifest
        place = {"path": str(self._folder.path / MANIFEST_NAME)}
        counted = (episodes, self._images)
        if counted != (manifest.episodes, manifest.pictures):
            message = f"{manifest.episodes} episodes, {manifest.pictures} pictures; there are "
            message = f"{place['path']}: says {message}{counted[0]} and {counted[1]}"
            yield CODES("count_mismatch", message, **place)
        elif len(self._digests) == episodes and digest_of_all(self._digests) != manifest.digest:
            message = f"{place['path']}: has the digest of other codes"
            yield CODES("digest_mismatch", message, **place)


def _finding(error: DataError, episode: str) -> Finding:
    code = {"data.other_tokenizer": "other_tokenizer", "data.missing_codes": "missing"}
    name = code.get(error.code, "broken")
    return CODES(name, error.message, episode=episode, path=error.details["path"])
