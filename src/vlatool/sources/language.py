"""Sentences that tell a robot what to do, by task. Source: lbm-data 2.6."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vlatool.errors import DataError
from vlatool.storage.uri import local_path

KINDS = ("original", "randomized", "verbose", "alternative")


@dataclass(frozen=True)
class LanguageAnnotations:
    """Task to kind to sentences."""

    by_task: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, location: str | None) -> "LanguageAnnotations":
        """Reads an annotations file; without one there are no annotations.

        Raises:
            DataError: The file is missing, not YAML, or lacks `language_dict`.
        """
        if location is None:
            return cls({})
        try:
            content = yaml.safe_load(local_path(location).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(
                f"{location}: language annotations cannot be read: {error}",
                hint="give a YAML file with `language_dict`, or leave the option out",
                code="data.broken_annotations",
            ) from None
        tasks = content.get("language_dict") if isinstance(content, dict) else None
        if not isinstance(tasks, dict):
            raise DataError(
                f"{location}: no mapping `language_dict` at the top",
                hint="expected language_dict: {Task: {original: [...], ...}}",
                code="data.broken_annotations",
            )
        return cls(tasks)

    def sentences(self, task: str) -> dict[str, list[str]]:
        """The exported kinds of a task, in their published order; empty for an unknown task."""
        kinds = self.by_task.get(task, {})
        return {kind: [str(text) for text in kinds[kind]] for kind in KINDS if kinds.get(kind)}


def task_in_words(task: str) -> str:
    """`BimanualPutRedBellPepperInBin` becomes `bimanual put red bell pepper in bin`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", task)
    return " ".join(word.lower() for word in words)
