"""Check of samples before a run starts: lines, and the names of their images; no pixels."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.loading.vla.info import VlaFolder, VlaInfo
from vlatool.loading.vla.reader import MISSING_IMAGE, UnusableError, read_sample, sample_key
from vlatool.storage.tree import file_names
from vlatool.storage.uri import is_remote

# Samples that are read at most, evenly spaced; about 0.3 ms each.
_MAX_SAMPLES = 20_000


def check_samples(info: VlaInfo, reporter: Reporter = NULL) -> None:
    """Raises an error for the first sample that cannot be used; reads at most 20,000.

    Data on remote storage are not read.
    """
    local = [folder for folder in info.folders if not is_remote(folder.samples.path)]
    count = sum(folder.num_samples for folder in local)
    step = max(1, -(-count // _MAX_SAMPLES))
    known: dict[Path, frozenset[str]] = {}
    with reporter.progress("checking samples", -(-count // step), "samples") as bar:
        for folder, number in islice(_numbers(local), 0, None, step):
            try:
                _check_images(folder, read_sample(folder, number).images, known)
            except UnusableError as error:
                reason, message = error.args
                key = sample_key(folder, number)
                raise DataError(
                    f"{key}: {message.removeprefix(f'{key}: ')}",
                    hint="run `vlatool verify` on the samples; to leave out what cannot be used, "
                    "set data.max_dropped_share",
                    code=f"data.{reason}",
                    details={"sample": key},
                ) from None
            bar.advance()


def _numbers(folders: list[VlaFolder]) -> Iterator[tuple[VlaFolder, int]]:
    for folder in folders:
        for span in folder.spans:
            for number in range(span.first, span.first + span.size):
                yield folder, number


def _check_images(
    folder: VlaFolder, names: tuple[str, ...], known: dict[Path, frozenset[str]]
) -> None:
    """Raises `UnusableError` for a missing image; each folder of images is listed once."""
    for path in dict.fromkeys(map(folder.image_path, names)):
        if path.parent not in known:
            known[path.parent] = file_names(path.parent)
        if path.name not in known[path.parent]:
            raise UnusableError(MISSING_IMAGE, f"the image {path} is missing")
