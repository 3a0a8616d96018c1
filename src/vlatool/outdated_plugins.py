"""Earlier names of vlatool in plugins, so that an error says how to rename them."""

import re
import traceback
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from vlatool.errors import EnvironmentProblem

_HELD_OUT, _EXCLUDED = "EpisodeRef(held_out=)", "EpisodeRef(excluded=)"
# Names that plugins define, earlier name to present name, by the label of their registry.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "format": {
        "noticed": "source_findings",
        "specialises": "base_format",
        "is_last_resort": "is_fallback",
        "sink": "default_sink",
        _HELD_OUT: _EXCLUDED,
    },
    "model type": {
        "check_origins": "check_init",
        "check_init_weights": "check_init",
        "recall": "restore_base_config",
        "keep": "save_assets",
        "broken_rules": "violations",
        "published_init": "published_start",
    },
    "kind of data": {
        "read_facts": "load_info",
        "prepared": "make_assets",
        "keep": "save_assets",
        "kept": "load_assets",
        "normalised": "normalized",
    },
    "config": {
        "broken_rules": "violations",
        "refused": "unsupported",
        "renamed": "aliases",
        "settled": "derive_static",
        "stands_for": "virtual_keys",
        "without_effect": "ignored",
    },
    "objective": {"settle": "update_buffers", "figures": "metrics", "watch": "check_metrics"},
}
# Names that plugins import from vlatool, earlier name to present name.
_RENAMED_IMPORTS = {
    "Block": "ShardInfo",
    "DatasetFacts": "RoboticsInfo",
    "Draws": "Rng",
    "Dropped": "DroppedSample",
    "Facts": "DatasetInfo",
    "Family": "FindingCodes",
    "FieldFacts": "FieldSpec",
    "FillsRoom": "ReadsIntoBuffer",
    "Kind": "FindingCode",
    "Normalises": "Normalizes",
    "Place": "SampleRef",
    "ReadsAhead": "Prefetching",
    "RoboticsKept": "RoboticsAssets",
    "needed_field": "required_field",
    "union": "merge_surveys",
}
# Attributes of objects of vlatool that plugins use, earlier name to present name.
_RENAMED_ATTRIBUTES = {
    "block": "shard",
    "blocks": "shards",
    "denormalise": "denormalize",
    "draws": "rng",
    "held_out": "excluded",
    "normalise": "normalize",
    "predict": "act",
    "refusal": "from_error",
    "refuse": "add_error",
}
_FAILED_IMPORT = re.compile(r"cannot import name '(\w+)' from '(vlatool[\w.]*)'")
# Attributes that readers may set in a method, not in the class body.
_INSTANCE_ATTRIBUTES = frozenset({"noticed", "source_findings"})


def check_names(plugin: str, label: str, target: object) -> None:
    """Raises if a class of a plugin defines earlier names of vlatool without the present ones.

    Args:
        plugin: Name of the plugin in the message.
        label: Label of its registry, `config` or `objective`.
        target: Class; built-in classes and other objects are not checked.

    Raises:
        EnvironmentProblem: The plugin is written for an earlier vlatool.
    """
    defined = _defined_names(target) if isinstance(target, type) else set[str]()
    present_names = {
        old: new
        for old, new in _RENAMED.get(label, {}).items()
        if old in defined and new not in defined
    }
    if present_names:
        raise _outdated(plugin, present_names)


def outdated_plugin_error(error: BaseException, plugin: str = "") -> EnvironmentProblem | None:
    """Error for an exception of a plugin that uses an earlier name of vlatool; None for others.

    Args:
        error: Failed import, or missing attribute of an object of vlatool.
        plugin: Name of the plugin in the message; by default its module.
    """
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
    old, new = "", ""
    if isinstance(error, ImportError) and (match := _FAILED_IMPORT.search(str(error))):
        old, new = match[1], _RENAMED_IMPORTS.get(match[1], "")
    elif isinstance(error, AttributeError) and _is_ours(type(error.obj).__module__):
        old, new = str(error.name), _RENAMED_ATTRIBUTES.get(str(error.name), "")
    if not new or _is_ours(module):
        return None
    return _outdated(plugin or f"the plugin module {module!r}", {old: new})


def _outdated(plugin: str, present_names: Mapping[str, str]) -> EnvironmentProblem:
    changes = ", ".join(f"{old} to {new}" for old, new in present_names.items())
    return EnvironmentProblem(
        f"{plugin} is written for an earlier vlatool: rename {changes}",
        hint="install a newer version of the plugin, or rename these parts in its code",
        code="environment.plugin_outdated",
        details={"renamed": dict(present_names)},
    )


def _defined_names(cls: type) -> set[str]:
    """Names that a class and its bases outside of vlatool define."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is object or _is_ours(base.__module__):
            continue
        names |= vars(base).keys() | vars(base).get("__annotations__", {}).keys()
        for value in vars(base).values():
            for code in _code_objects(getattr(value, "__code__", None)):
                names |= _INSTANCE_ATTRIBUTES.intersection(code.co_names)
                # Names of keyword arguments of a call are a constant.
                keywords: Any = [item for item in code.co_consts if isinstance(item, tuple)]
                if "EpisodeRef" in code.co_names and any("held_out" in item for item in keywords):
                    names.add(_HELD_OUT)
    return names


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "vlatool"


def _code_objects(code: object) -> Iterator[CodeType]:
    """Yields the code of a function and of the functions and generators inside it."""
    if isinstance(code, CodeType):
        yield code
        for item in code.co_consts:
            yield from _code_objects(item)
