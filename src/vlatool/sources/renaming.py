"""A reader whose cameras and fields have new names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.findings import Finding
from vlatool.pages.text import indices_text
from vlatool.sources.base import FormatReader
from vlatool.sources.rules import SOURCE
from vlatool.transforms.names import NameMap, left_out, renamed_episode, renamed_survey


@dataclass(frozen=True)
class _RenamingReader:
    reader: FormatReader
    names: NameMap  # without globs
    source_findings: Sequence[Finding] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.reader, name)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        return renamed_survey(self.reader.survey(refs), self.names)

    def read(self, ref: EpisodeRef) -> Episode:
        return renamed_episode(self.reader.read(ref), self.names)


def with_names(reader: FormatReader, names: NameMap) -> FormatReader:
    """The reader with new names, which are `expanded`."""
    if names.is_empty:
        return reader
    return cast(FormatReader, _RenamingReader(reader, names, reader.source_findings))


def read_with_names(
    reader: FormatReader, refs: Sequence[EpisodeRef], names: NameMap
) -> tuple[FormatReader, Survey, NameMap]:
    """The reader with new names, the survey with them, and the names without globs; DataError for
    old names that the episodes do not have. Dimensions that no name has are a finding.
    """
    survey = reader.survey(refs)
    if names.is_empty:
        return reader, survey, names
    matched = names.expanded(survey.cameras, survey.fields)
    after = renamed_survey(survey, matched)
    findings = list(reader.source_findings)
    for name, columns in left_out(survey, matched).items():
        message = f"no new name has the dimensions {indices_text(columns)} of {name}"
        findings.append(SOURCE("dimensions_left_out", message, field=name))
    return cast(FormatReader, _RenamingReader(reader, matched, findings)), after, matched
