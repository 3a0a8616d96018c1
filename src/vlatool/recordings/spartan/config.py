"""Options of the Spartan format, and the files that they name.

Source: formats/spartan 3, 6, 7, 8; formats/lbm-preprocessing 1.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import PrivateAttr, ValidationError, field_validator, model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.episode import PoseGroup
from vlatool.errors import DataError, StorageError
from vlatool.storage.documents import DocumentError, read_json, read_yaml
from vlatool.storage.uri import location

_KINDS = ("original", "randomized", "verbose", "alternative")
_ACTION_WIDTHS = {
    "robot__action__poses__right::panda__xyz": 3,
    "robot__action__poses__right::panda__rot_6d": 6,
    "robot__action__poses__left::panda__xyz": 3,
    "robot__action__poses__left::panda__rot_6d": 6,
    "robot__action__grippers__right::panda_hand": 1,
    "robot__action__grippers__left::panda_hand": 1,
}


# Poses that also get fields relative to the actual pose at the anchor. Source: formats/spartan 7.
def _published_group(kind: str, side: str) -> PoseGroup:
    pose = f"robot__{kind}__poses__{side}::panda"
    return PoseGroup(f"{side}_panda_{kind}", f"{pose}__xyz", f"{pose}__rot_6d")


PUBLISHED_POSE_GROUPS = (
    _published_group("action", "left"),
    _published_group("action", "right"),
    _published_group("desired", "left"),
    _published_group("desired", "right"),
    _published_group("actual", "left"),
    _published_group("actual", "right"),
)


class SpartanConfig(ConfigModel):
    """Options of the format `spartan` (raw LBM episodes)."""

    location_keys: ClassVar[frozenset[str]] = frozenset(
        {"language_annotations_path", "action_fields_config_path", "validation_episodes_path"}
    )

    data_discard_keys: list[str] = option([], "Leave these observation arrays out, unread.")
    language_annotations_path: str | None = option(
        None, "YAML file with `language_dict`, which lists sentences by task and kind."
    )
    action_fields_config_path: str | None = option(
        None,
        "YAML file with action_key_fields, action_index_fields and pose_groups, which replaces "
        "these options.",
    )
    validation_episodes_path: str | None = option(
        None, "JSON file with the numbers of the episodes to leave out, by task."
    )
    task: str | None = option(None, "Task of all episodes; null uses the task in their paths.")
    action_key_fields: list[str] = option(
        list(_ACTION_WIDTHS), "Fields of the action vector, in order."
    )
    action_index_fields: list[int] = option(
        np.cumsum(list(_ACTION_WIDTHS.values())).tolist(),
        "Index after the last dimension of each field in the action vector, ascending.",
    )

    @field_validator("data_discard_keys", mode="before")
    @classmethod
    def _null_discards_nothing(cls, value: Any) -> Any:
        """Published configs have null for an empty list."""
        return [] if value is None else value

    # Content of the action file; part of the config, so that workers do not read the file.
    _pose_groups: tuple[PoseGroup, ...] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_action_parts(self) -> Self:
        stops = self.action_index_fields
        if len(stops) != len(self.action_key_fields):
            raise ValueError("action_index_fields and action_key_fields differ in length")
        if any(high <= low for low, high in zip([0, *stops], stops, strict=False)):
            raise ValueError("action_index_fields must be ascending and positive")
        if len(set(self.action_key_fields)) < len(stops):
            raise ValueError("action_key_fields has a repeated name")
        return self


def with_action_file(config: SpartanConfig) -> tuple[SpartanConfig, tuple[PoseGroup, ...]]:
    """The config with the content of its action file, and the pose groups of the episodes."""
    if config._pose_groups is not None:
        return config, config._pose_groups
    path = config.action_fields_config_path
    if path is None:
        return config, PUBLISHED_POSE_GROUPS
    content = _mapping(path, read_yaml, "action fields")
    try:
        groups: list[PoseGroup] = []
        for group in content.get("pose_groups") or []:
            keys = (group["name"], group["position_key"], group["rotation_key"])
            groups.append(PoseGroup(*map(str, keys)))
        values = {key: content[key] for key in ("action_key_fields", "action_index_fields")}
        unchanged = config.model_dump(exclude={*values, "action_fields_config_path"})
        resolved = SpartanConfig(**unchanged, **values)
        resolved._pose_groups = tuple(groups)
        return resolved, resolved._pose_groups
    except ValidationError as error:
        first = error.errors()[0]
        key_path = ".".join(map(str, first["loc"]))
        reason = f"{key_path}: {first['msg']}" if key_path else first["msg"]
        raise _form_error(path, "action fields", reason) from None
    except KeyError as error:
        raise _form_error(path, "action fields", f"{error} is missing") from None
    except TypeError:
        raise _form_error(path, "action fields", "pose_groups is not a list of mappings") from None


def validation_episodes(path: str | None) -> Mapping[str, frozenset[int]]:
    """Map from task to the numbers of the episodes to exclude."""
    if path is None:
        return {}
    excluded: dict[str, frozenset[int]] = {}
    for task, numbers in _mapping(path, read_json, "validation episodes").items():
        if not isinstance(numbers, list):
            raise _form_error(path, "validation episodes", f"{task} has no list of numbers")
        try:
            excluded[str(task)] = frozenset(map(int, numbers))
        except (TypeError, ValueError, OverflowError) as error:
            raise _form_error(path, "validation episodes", error) from None
    return excluded


def _mapping(path: str, read: Callable[[Path], Any], label: str) -> dict[str, Any]:
    try:
        content = read(location(path))
    except (OSError, DocumentError) as error:
        problem = f"{label} cannot be read: {' '.join(str(error).split())}"
        raise _file_error(path, problem, "check the path and the file") from None
    if not isinstance(content, dict):
        raise _form_error(path, label, "it is not a mapping")
    return content


def _form_error(path: str, label: str, reason: object) -> DataError:
    forms = {
        "action fields": "action_key_fields: [...], action_index_fields: [...], pose_groups: "
        "[{name, position_key, rotation_key}]",
        "validation episodes": '{"Task": [3, 17, ...], ...}',
    }
    problem = f"{label} do not have the expected form: {str(reason).splitlines()[0]}"
    return _file_error(path, problem, f"expected {forms[label]}")


def _file_error(path: str, problem: str, hint: str) -> DataError:
    return DataError.at(path, problem, hint=hint, code="data.broken")


def language_annotations(path: str | None) -> dict[str, dict[str, list[str]]]:
    """Map from task to exported kind, in published order, to sentences, from an annotations
    file.
    """
    if path is None:
        return {}
    try:
        content = read_yaml(location(path))
    except (FileNotFoundError, DocumentError) as error:
        raise _annotations_error(path, f"cannot be read: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise StorageError.at(
            path,
            f"language annotations cannot be read: {error.strerror or error}",
            hint="check the path and its permissions, or omit the option",
            code="storage.unreadable",
        ) from None
    tasks = content.get("language_dict") if isinstance(content, dict) else None
    if not isinstance(tasks, dict):
        raise _annotations_error(path, "have no mapping `language_dict` at the top")
    annotations: dict[str, dict[str, list[str]]] = {}
    for task, kinds in tasks.items():
        _check_kinds(path, task, kinds)
        annotations[task] = {kind: kinds[kind] for kind in _KINDS if kinds.get(kind)}
    return annotations


def _check_kinds(path: str, task: Any, kinds: Any) -> None:
    """Raises DataError unless `kinds` maps kinds to lists of sentences or None."""
    if not isinstance(kinds, dict):
        raise _annotations_error(path, f"have no mapping of kinds for the task {task}")
    for kind, sentences in kinds.items():
        is_list = isinstance(sentences, list) and all(isinstance(text, str) for text in sentences)
        if sentences is not None and not is_list:
            raise _annotations_error(
                path, f"have no list of sentences for the task {task}, kind {kind}"
            )


def _annotations_error(path: str, problem: str) -> DataError:
    hint = "expected language_dict: {Task: {original: [sentence, ...], ...}}; or omit the option"
    return _file_error(path, f"language annotations {problem}", hint)


def task_to_sentence(task: str) -> str:
    """`BimanualPutRedBellPepperInBin` becomes `bimanual put red bell pepper in bin`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", task)
    return " ".join(word.lower() for word in words)
