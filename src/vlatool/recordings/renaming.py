"""A reader whose cameras and fields have new names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.findings import Finding
from vlatool.recordings.base import POLICY_KEYS, FormatReader, field_specs
from vlatool.recordings.rules import SOURCE
from vlatool.report.text import indices_text
from vlatool.transforms.names import NameMap, renamed_episode


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


def with_names(
    reader: FormatReader, names: NameMap, findings: Sequence[Finding] = ()
) -> FormatReader:
    """The reader with new names, which have no globs."""
    if names.is_empty:
        return reader
    return cast(FormatReader, _RenamingReader(reader, names, [*reader.source_findings, *findings]))


def read_with_names(
    reader: FormatReader, refs: Sequence[EpisodeRef], names: NameMap
) -> tuple[FormatReader, Survey, NameMap]:
    """Returns the reader and its survey with new names, and the names without globs.

    Dimensions of a renamed field that get no new name are a finding.

    Raises:
        DataError: The episodes do not have an old name.
    """
    survey = reader.survey(refs)
    if names.is_empty:
        return reader, survey, names
    matched = names.expanded(survey.cameras, survey.fields)
    after = renamed_survey(survey, matched)
    unnamed: dict[str, set[int]] = {}  # dimensions of the fields of which slices have new names
    for part in matched.fields.values():
        if part.key:
            columns = range(survey.fields[part.key].width)
            unnamed.setdefault(part.key, {*columns}).difference_update(
                columns[part.start : part.stop]
            )
    findings: list[Finding] = []
    for name, dimensions in unnamed.items():
        if dimensions:
            message = f"{name}: dimensions {indices_text(sorted(dimensions))} are left out"
            findings.append(SOURCE("dimensions_left_out", message, field=name))
    return with_names(reader, matched, findings), after, matched


def in_lower_case(names: NameMap, cameras: Sequence[str]) -> NameMap:
    """The names, with lower-case ones for cameras whose present name has capital letters.

    Loaders of tars read names of members in lower case. A name that is taken gets a number.
    """
    written = dict(names.cameras)
    taken = {name for name in cameras if name == name.lower()}
    for name in cameras:
        if name in taken:
            continue
        new = name.lower()
        number = 2
        while new in taken:
            new = f"{name.lower()}_{number}"
            number += 1
        taken.add(new)
        old = written.pop(name, name)
        if old != new:
            written[new] = old
    return names.model_copy(update={"cameras": written})


def renamed_survey(survey: Survey, names: NameMap) -> Survey:
    example = replace(
        survey.example(),
        cameras=survey.cameras,
        dimension_names={name: spec.names for name, spec in survey.fields.items()},
        declared=survey.declared,
    )
    new = renamed_episode(example, names)
    policy = {key: getattr(new, key) for key in POLICY_KEYS}
    return replace(survey, cameras=new.cameras, fields=field_specs(new), **policy)
