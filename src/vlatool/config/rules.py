"""Rules that are checked when a command runs: unsupported and contradictory values.

A violation is an error if the value was set explicitly, a warning if it comes from a preset.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vlatool.config.base import ConfigModel, Supported, Violation
from vlatool.config.coerce import value_text
from vlatool.config.problems import Problem, config_error
from vlatool.events import Reporter


def violations(config: ConfigModel) -> Iterator[Violation]:
    """Yields unsupported values, and values that contradict others."""
    for prefix, section in sections(config):
        for violation in section.violations():
            yield replace(violation, keys=tuple(f"{prefix}{key}" for key in violation.keys))
        for name, row in section.NAMES.items():
            if not isinstance(row, Supported):
                continue
            key = f"{prefix}{name}"
            value = getattr(section, name)
            if value not in row.values:
                message = f'"{key}" is {value_text(value)}, which is not supported: {row.reason}'
                yield Violation((key,), message, "error", "config.unsupported")


def sections(config: ConfigModel, prefix: str = "") -> Iterator[tuple[str, ConfigModel]]:
    """Yields the configuration and all its sections, each with the prefix of its dotted keys."""
    yield prefix, config
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            yield from sections(section, f"{prefix}{name}.")


def explicit_keys(config: ConfigModel) -> frozenset[str]:
    """Dotted keys that were set when the configuration was constructed."""
    keys: set[str] = set()
    for prefix, section in sections(config):
        for name in section.model_fields_set:
            if not isinstance(getattr(section, name), ConfigModel):
                keys.add(f"{prefix}{name}")
    return frozenset(keys)


def check_rules(
    violations: Iterable[Violation], typed: Collection[str], reporter: Reporter
) -> None:
    """Raises an error with all violations that are errors, else reports warnings."""
    warnings: list[Violation] = []
    errors: list[Problem] = []
    for violation in violations:
        is_typed = any(key in typed for key in violation.keys)
        if violation.level == "error" or (violation.level == "typed" and is_typed):
            key = violation.keys[0]
            errors.append(Problem(key, "", violation.message, code=violation.code))
        else:
            warnings.append(violation)
    if errors:
        hint = f"set {errors[0].key} to another value, or leave it out"
        raise config_error(errors, hint=hint)
    for warning in warnings:
        reporter.warn("inherited_value", warning.message)


def derivations(config: ConfigModel, rules: Mapping[str, str]) -> Iterator[str]:
    """Yields a message for each derived value that affects the output."""
    for key, rule in rules.items():
        section, _, name = key.rpartition(".")
        model = _section(config, section)
        if name not in model.no_effect_on_output:
            value = getattr(model, name)
            plain = value.model_dump(mode="json") if isinstance(value, ConfigModel) else value
            yield f"{key} from {rule}: {value_text(plain)}"


def _section(config: ConfigModel, key: str) -> ConfigModel:
    if not key:
        return config
    section: Any = config
    for name in key.split("."):
        section = getattr(section, name)
    return section
