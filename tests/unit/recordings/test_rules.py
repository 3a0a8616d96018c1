"""Checks for formats whose reader has no checks of its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FrameSource, Survey, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.recordings.base import FormatReader, survey_by_reading
from vlatool.recordings.rules import SOURCE, check_episode, duplicate_ids

REF = EpisodeRef("one", Path("one"), "source")


class Images(FrameSource):
    size = (2, 3)

    def __len__(self) -> int:
        return 3

    def read(self, indices: Sequence[int]) -> UInt8Array:
        if 2 in indices:
            raise DataError("frame 2 is broken")
        return np.zeros((len(indices), *self.size, 3), np.uint8)


class Reader(FormatReader):
    Config = ConfigModel

    def __init__(self, config: Any = None, error: DataError | None = None, **parts: Any) -> None:
        del config
        self.error = error
        self.parts = parts

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        del sources
        yield REF

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        return survey_by_reading(self.read, refs)

    def read(self, ref: EpisodeRef) -> Episode:
        if self.error is not None:
            raise self.error
        lowdim = {"action": np.zeros((3, 1))}
        return Episode(
            **{
                "id": ref.id, "task": "", "fps": 1.0, "num_frames": 3, "cameras": {},
                "lowdim": lowdim, **self.parts,
            }
        )  # fmt: skip


def codes(reader: Reader, *, deep: bool = False) -> list[str]:
    return [finding.code for finding in check_episode(reader, REF, deep=deep)]


def test_findings_of_reading_missing_fields_and_decoded_images_are_reported() -> None:
    assert codes(Reader()) == []
    read_findings = (SOURCE("no_language", "a"), Finding("acme.bent", "warning", "b"))
    assert codes(Reader(findings=read_findings)) == ["source.no_language", "acme.bent"]
    assert codes(Reader(lowdim={})) == ["source.no_fields"]
    reader = Reader(cameras={"front": Images()})
    assert codes(reader) == []
    assert codes(reader, deep=True) == ["pictures.unreadable", "pictures.black"]


def test_reader_error_becomes_a_finding_with_its_code() -> None:
    findings = list(check_episode(Reader(error=DataError("no", code="data.no")), REF, deep=False))
    assert [(finding.code, finding.severity, finding.place) for finding in findings] == [
        ("data.no", "error", {"episode": "one"})
    ]


def test_renamed_episode_is_reported() -> None:
    refs = [EpisodeRef(name, Path(name), "s") for name in ("a", "a-2", "b-2")]
    findings = list(duplicate_ids(refs))
    assert [(finding.code, finding.place["episode"]) for finding in findings] == [
        ("source.duplicate_id", "a-2")
    ]
