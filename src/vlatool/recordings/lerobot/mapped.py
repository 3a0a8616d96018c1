"""Reads LeRobot data sets with a mapping, and proposes a mapping for them.

References are names of features and columns. Source: formats/lerobot 4.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, get_args

from vlatool.episode import (
    Array,
    Declaration,
    Episode,
    EpisodeRef,
    FrameSource,
    LanguageKind,
    StoredPart,
)
from vlatool.errors import DataError
from vlatool.findings import Collector, Finding, FindingCodes
from vlatool.recordings.lerobot.check import name_to_sentence, open_rows
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.folder import EpisodeFiles
from vlatool.recordings.lerobot.images import (
    SwappedColors,
    missing_images,
    open_camera,
    open_depth,
    open_labels,
)
from vlatool.recordings.lerobot.language import EVENTS, annotated, frame_texts, text_columns
from vlatool.recordings.lerobot.layout import AUTOMATIC, PERSISTENT
from vlatool.recordings.lerobot.parts import (
    TASK_INDEX,
    listed_parts,
    listed_success,
    listed_texts,
    stored_things,
)
from vlatool.recordings.lerobot.tables import Rows, column_names, read_rows
from vlatool.recordings.mapping import RecordingMapping
from vlatool.recordings.plan import PlannedImages
from vlatool.recordings.planned import PlannedEpisode
from vlatool.recordings.propose import Clues, proposed_mapping
from vlatool.recordings.rules import SOURCE


@dataclass(frozen=True)
class _Keys:
    """Keys that the format does not have."""

    instruction: str | None = None
    fps: float | None = None


class MappedEpisode(PlannedEpisode):
    """An episode with the roles of a mapping; its rows are read when they are needed."""

    codes: ClassVar[FindingCodes] = LEROBOT
    missing: ClassVar[str] = "missing_column"

    def __init__(self, ref: EpisodeRef, files: EpisodeFiles, mapping: RecordingMapping) -> None:
        dataset = files.dataset
        columns = column_names(files.rows.path)
        self._keeps_rest = mapping.rest == "assign"
        if self._keeps_rest:
            kinds = {TASK_INDEX: "original", **text_columns(dataset)}
            if columns is not None:
                kinds = {column: kind for column, kind in kinds.items() if column in columns}
            mapping = _with_texts(mapping, kinds)
        super().__init__(ref, mapping, _Keys(), str(files.number))
        self._files = files
        self._features = dataset.info.features
        self._report = Collector(LEROBOT, strict=True, episode=ref.id)
        self.missing_cameras: dict[str, DataError] = {}
        count = files.line.length
        if count is None:
            count = len(read_rows(files.segment(), f"episode {files.number}", []))
        things = stored_things(files, columns or (), count)
        for name in mapping.labels.values():
            if name in self._features and self._features[name].dtype == "video":
                reason = f"{name} is a video, which alters labels"
                raise self.error("not_numeric", reason)
        if mapping.success:  # else the column of the format is it
            for number, thing in enumerate(things):
                if thing.role == "success":
                    things[number] = replace(thing, role="left_out")
        self.make_plan(things)
        for path in self.plan.fields.values():
            thing = self.things[path]
            if thing.kind != "array":
                raise self.error("not_numeric", f"{path} is {thing.kind}, not a column of numbers")
        self.plan.parts = tuple(self._with_role_of_format(part) for part in self.plan.parts)
        fields = self.plan.fields
        if self._keeps_rest and not mapping.action_fields:
            actions = [name for name, path in fields.items() if path in dataset.action_keys]
            self.plan.actions = tuple(actions)
        if self._keeps_rest and not mapping.proprioception_fields:
            observed = [name for name, path in fields.items() if path in dataset.observation_keys]
            self.plan.observed = tuple(observed)
        for name, planned in list(self.plan.cameras.items()):
            if planned.video:
                continue
            error = missing_images(files, self._features[planned.path], columns)
            if error is not None:
                self.missing_cameras[name] = error
                del self.plan.cameras[name]

    def _with_role_of_format(self, part: StoredPart) -> StoredPart:
        """Columns that the format itself needs, and annotations, which have no single kind."""
        if part.role == "left_out" and part.path in AUTOMATIC and part.path != TASK_INDEX:
            return StoredPart(part.path, "time")
        if part.path in (PERSISTENT, EVENTS) and self._keeps_rest:
            return StoredPart(part.path, "language", "", "text")
        return part

    def error(self, code: str, reason: str, **details: Any) -> DataError:
        return super().error(code, reason, **{"hint": "name another in the mapping", **details})

    @cached_property
    def _rows(self) -> tuple[Rows, Mapping[str, Sequence[Any]]]:
        """Rows of the columns that the plan uses, and the bookkeeping columns."""
        roles = ("field", "language", "success", "time")
        columns = [part.path for part in self.plan.parts if part.role in roles]
        rows, metadata = open_rows(self._files, columns, self._report)
        assert rows is not None, "a strict collector raises before"
        return rows, metadata

    def open_images(self, planned: PlannedImages) -> FrameSource:
        feature = self._features[planned.path]
        (rows, _) = self._rows
        try:
            if planned.decision.role == "depth":
                return open_depth(self._files, feature, rows)
            if planned.decision.role == "labels":
                return open_labels(self._files, feature, rows)
        except ValueError as error:
            raise self.error("not_numeric", f"{planned.path}: {error}") from error
        frames = open_camera(self._files, feature, rows, self._report)
        assert frames is not None, "there are rows"
        return SwappedColors(frames) if planned.bgr else frames

    def numbers(self, path: str) -> Array:
        width = self._features[path].width if path in self._features else None
        return self._rows[0].vectors(path, width)

    def texts_of(self, name: str, count: int) -> list[str]:
        return frame_texts(self._files, self._rows[0], self._column(name), self._report)[:count]

    def value_of(self, name: str) -> float:
        """The largest value: a column of success is true from some row on, or in the last one."""
        return float(self._rows[0].vectors(self._column(name), None).max())

    def _column(self, name: str) -> str:
        return self.find_stored(name).path

    def stored_fps(self) -> float | None:
        return self._files.dataset.info.fps

    def read(self) -> Episode:
        """The episode, with what the format knows of its fields."""
        info = self._files.dataset.info
        findings: list[Finding] = []
        kinds = self._take_instruction(findings)  # of the used texts of the list of episodes
        takes_success = self._keeps_rest and not self.plan.success
        listed = listed_parts(self._files, kinds, is_success=takes_success)
        self.plan.parts = (*self.plan.parts, *listed)
        success = listed_success(self._files) if takes_success else None
        episode = self.episode(success=success)
        rows, metadata = self._rows
        language: dict[str, Sequence[str]] = dict(episode.language)
        spans = list(episode.language_spans)
        if self._keeps_rest:
            whole, annotated_spans = annotated(rows, metadata, info.fps, self._report)
            language |= whole
            spans += annotated_spans
        names: dict[str, tuple[str, ...]] = {}
        declared: list[Declaration] = []
        for name, path in self.plan.fields.items():
            if path in self._features and self._features[path].dimension_names:
                names[name] = self._features[path].dimension_names
            for declaration in self._files.dataset.declared:
                if declaration.field == path:
                    declared.append(replace(declaration, field=name))
        for name, source in self.plan.following.items():
            if source in names:
                names[name] = names[source]
        return replace(
            episode,
            language=language,
            language_spans=tuple(spans),
            dimension_names=names,
            missing_cameras=self.missing_cameras,
            declared=tuple(declared),
            frame_metadata={name: values[: self.count] for name, values in metadata.items()},
            findings=(*self._report.findings, *findings, *episode.findings),
        )

    def _take_instruction(self, findings: list[Finding]) -> dict[str, str]:
        """Takes another instruction if the planned texts have none; returns its kind by path.

        This is the instruction in the list of episodes, else the name of the data set.
        """
        texts: list[str] = []
        for kind, reference in self.plan.texts:
            if kind in ("original", "alternative"):
                texts += self.texts(reference, self.count)
        if any(text.strip() for text in texts):
            return {}
        if self._keeps_rest:
            for path, (_, sentences) in listed_texts(self._files).items():
                self.config = _Keys(instruction=sentences[0])
                return {path: "original"}
        sentence = name_to_sentence(self._files.dataset.name)
        self.config = _Keys(instruction=sentence)
        message = f"{self.ref.id}: has no instruction; the data set's name is used: {sentence!r}"
        findings.append(SOURCE("language_fallback", message, episode=self.ref.id))
        return {}


def _with_texts(mapping: RecordingMapping, kinds: Mapping[str, str]) -> RecordingMapping:
    """The mapping with the texts of the set that it does not name."""
    instructions = mapping.instructions
    language: dict[Any, str] = dict(mapping.language)
    for column, kind in kinds.items():
        if column in (*instructions, *language.values()):
            continue
        if kind == "original":
            instructions.append(column)
        else:
            language.setdefault(kind, column)
    return mapping.model_copy(update={"instruction": instructions, "language": language})


def proposal_of(files: EpisodeFiles) -> str:
    """A mapping that reads the set as it is read without one, as YAML with comments."""
    dataset = files.dataset
    columns = column_names(files.rows.path) or ()
    language: dict[str, str] = {}
    instructions = [TASK_INDEX] if TASK_INDEX in columns else []
    for column, kind in text_columns(dataset).items():
        if kind == "original":
            instructions.append(column)
        elif kind in get_args(LanguageKind):
            language.setdefault(kind, column)
    named = (*instructions, *language.values())
    things = stored_things(files, columns, files.line.length)
    text = proposed_mapping(
        Clues([thing for thing in things if thing.path not in named]),
        fps=dataset.info.fps,
        action_fields=[*dataset.action_keys],
        proprioception_fields=[*dataset.observation_keys],
        instruction=instructions[0] if len(instructions) == 1 else instructions,
        language=language,
    )
    # The set itself lists its episodes.
    lines = [line for line in text.splitlines() if not line.startswith("episodes:")]
    return "\n".join(lines) + "\n"
