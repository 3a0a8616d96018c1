"""Sentences that tell a robot what to do, by task. Source: lbm-data 2.6."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vlatool.errors import DataError, StorageError
from vlatool.storage import uri

# The C parser is ten times as fast; PyYAML is also built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

KINDS = ("original", "randomized", "verbose", "alternative")


@dataclass(frozen=True)
class LanguageAnnotations:
    """Task to kind to sentences."""

    by_task: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, location: str | None) -> "LanguageAnnotations":
        """Reads an annotations file, local or in S3; without one there are no annotations.

        Raises:
            DataError: The file is missing, not YAML, or not of the expected shape.
            StorageError: It is there, but cannot be read.
        """
        if location is None:
            return cls({})
        try:
            text = uri.location(location).read_text(encoding="utf-8")
            content = yaml.load(text, Loader=_Loader)  # noqa: S506 - one of the safe loaders
        except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise _broken(location, f"cannot be read: {reason}") from None
        except OSError as error:
            raise StorageError(
                f"{location}: language annotations cannot be read: {error.strerror or error}",
                hint="check the path and its permissions, or leave the option out",
                code="storage.read",
                details={"path": location},
            ) from None
        tasks = content.get("language_dict") if isinstance(content, dict) else None
        if not isinstance(tasks, dict):
            raise _broken(location, "have no mapping `language_dict` at the top")
        for task, kinds in tasks.items():
            _check_kinds(location, task, kinds)
        return cls(tasks)

    def sentences(self, task: str) -> dict[str, list[str]]:
        """The exported kinds of a task, in their published order; empty for an unknown task."""
        kinds = self.by_task.get(task, {})
        return {kind: [str(text) for text in kinds[kind]] for kind in KINDS if kinds.get(kind)}


def _check_kinds(location: str, task: Any, kinds: Any) -> None:
    """Refuses what is not a mapping of kinds to lists of sentences; a kind may be empty."""
    if not isinstance(kinds, dict):
        raise _broken(location, f"have no mapping of kinds for the task {task}")
    for kind, sentences in kinds.items():
        is_list = isinstance(sentences, list) and all(isinstance(text, str) for text in sentences)
        if sentences is not None and not is_list:
            raise _broken(location, f"have no list of sentences for the task {task}, kind {kind}")


def _broken(location: str, problem: str) -> DataError:
    return DataError(
        f"{location}: language annotations {problem}",
        hint="expected language_dict: {Task: {original: [sentence, ...], ...}};"
        " or leave the option out",
        code="data.broken_annotations",
        details={"path": location},
    )


def task_in_words(task: str) -> str:
    """`BimanualPutRedBellPepperInBin` becomes `bimanual put red bell pepper in bin`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", task)
    return " ".join(word.lower() for word in words)
