"""Texts of frames as spans, and the rules of spans for all formats."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import get_args

import numpy as np

from vlatool.episode import EpisodeRef, LanguageKind, LanguageSpan
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.recordings.rules import SOURCE, no_instruction
from vlatool.storage.documents import DocumentError, parse_json

# Sentences of the whole episode by kind of annotation, and texts of some frames.
Language = tuple[Mapping[str, Sequence[str]], Sequence[LanguageSpan]]

_INSTRUCTION = re.compile(
    r"(natural_)?(language_)?instruction|language_(description|goal)|task_description|prompt"
)

# Names of sentences in metadata; elsewhere they may be codes, such as `en`.
_SENTENCE = re.compile(r"lang|language|task|task_name|goal|sentence|caption|description", re.I)


def kind_of_name(name: str) -> str:
    """Kind of annotation that texts of this name are; empty if they are none.

    A name with a number behind it, such as `language_instruction_2`, is an alternative.
    """
    stem = name.rstrip("0123456789").rstrip("_")
    if _INSTRUCTION.fullmatch(stem):
        return "original" if stem == name or name.endswith("1") else "alternative"
    return name if name in get_args(LanguageKind) else ""


def is_instruction(name: str, text: str) -> bool:
    """True if a value of metadata of this name is an instruction: `lang`, `task`, ... of words."""
    return bool(kind_of_name(name)) or (_SENTENCE.fullmatch(name) is not None and " " in text)


def sentences_in(values: Mapping[str, object]) -> dict[str, str]:
    """Instructions in values that are JSON, one level deep: `ep_meta.lang` in `ep_meta`."""
    sentences: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(value, str) or not value.lstrip().startswith("{"):
            continue
        try:
            document = parse_json(value)
        except DocumentError:
            continue
        for key, text in document.items() if isinstance(document, dict) else ():
            if isinstance(text, str) and text.strip() and is_instruction(key, text.strip()):
                sentences[f"{name}.{key}"] = text
    return sentences


def recorded_language(
    ref: EpisodeRef,
    num_frames: int,
    texts: Iterable[tuple[str, Sequence[str]]],
    instruction: str | None,
) -> tuple[Language, list[Finding]]:
    """Language and its findings; an instruction that is given replaces the recorded one."""
    if instruction is not None:
        others = [(kind, rows) for kind, rows in texts if kind != "original"]
        texts = [("original", [instruction]), *others]
    language = language_of(texts)
    findings = list(check_language(ref.id, num_frames, language))
    if not any(language):
        findings.append(no_instruction(ref))
    return language, findings


def language_of(texts: Iterable[tuple[str, Sequence[str]]]) -> Language:
    """Language of an episode, from pairs of a kind of annotation and one text for each frame.

    Rows of one text have it for the whole episode, rows of several for the frames that have it.
    """
    whole: dict[str, list[str]] = {}
    spans: list[LanguageSpan] = []
    for kind, rows in texts:
        distinct = [text for text in dict.fromkeys(rows) if text.strip()]
        if len(distinct) == 1:
            sentences = whole.setdefault(kind, [])
            if distinct[0] not in sentences:
                sentences.append(distinct[0])
        elif distinct:
            spans += _runs(kind, rows)
    return whole, spans


def _runs(kind: str, rows: Sequence[str]) -> Iterator[LanguageSpan]:
    first = 0
    for text, run in groupby(rows):
        count = len(list(run))
        if text.strip():
            yield LanguageSpan(kind, text, first, first + count - 1)
        first += count


def first_text(language: Language) -> str:
    """First sentence of an episode; empty if it has none."""
    whole, spans = language
    for texts in whole.values():
        return texts[0]
    return spans[0].text if spans else ""


def check_language(episode: str, num_frames: int, language: Language) -> Iterator[Finding]:
    """Yields findings on texts of frames: overlaps, wrong frames, missing texts, gaps."""
    whole, spans = language
    last: dict[str, int] = {}  # last frame so far, by kind
    silent = np.full(num_frames, not whole and len(spans) > 0)
    for span in sorted(spans, key=lambda span: (span.first, span.last)):
        place = f"{episode}: {span.kind!r} of frames {span.first} to {span.last}"
        if not 0 <= span.first <= span.last < num_frames:
            message = f"{place} goes beyond the {counted(num_frames, 'frame')} of the episode"
            yield SOURCE("span_outside", message, episode=episode, frame=span.first)
        if span.first <= last.get(span.kind, -1):
            message = f"{place} begins before the previous one ends"
            yield SOURCE("spans_overlap", message, episode=episode, frame=span.first)
        if not span.text.strip():
            yield SOURCE("empty_span", f"{place} has no text", episode=episode, frame=span.first)
        else:
            silent[max(span.first, 0) : span.last + 1] = False
        last[span.kind] = max(span.last, last.get(span.kind, -1))
    if silent.any():
        first = int(silent.argmax())
        count = int(silent.sum())
        message = f"{episode}: {counted(count, 'frame has', 'frames have')} no text, first {first}"
        yield SOURCE("silent_frames", message, episode=episode, frame=first)
