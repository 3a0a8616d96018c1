"""Rules that hold when a command runs: what cannot be used, does nothing, or contradicts itself.

Who typed a value is told that it is wrong; who inherited it from a preset is warned.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vlatool.config.base import ConfigModel, Violation
from vlatool.config.problems import Problem, config_error
from vlatool.events import Reporter


def violations(config: ConfigModel) -> Iterator[Violation]:
    """Values that nothing can be done with yet, and those that contradict others."""
    for prefix, section in sections(config):
        for broken in section.violations():
            yield replace(broken, keys=tuple(f"{prefix}{key}" for key in broken.keys))
        for key, (allowed, reason) in section.unsupported.items():
            value = getattr(section, key)
            if value not in allowed:
                message = f'"{prefix}{key}" is {value!r}, which cannot be used here: {reason}'
                yield Violation((f"{prefix}{key}",), message, "error", "config.refused")


def ignored_keys(config: ConfigModel) -> Iterator[str]:
    """A sentence for every key that was set and does nothing."""
    for prefix, section in sections(config):
        for key, reason in section.ignored.items():
            if getattr(section, key) != type(section).model_fields[key].default:
                yield f"{prefix}{key} has no effect: {reason}"


def sections(config: ConfigModel, prefix: str = "") -> Iterator[tuple[str, ConfigModel]]:
    """The configuration and every section in it, each with the start of its dotted keys."""
    yield prefix, config
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            yield from sections(section, f"{prefix}{name}.")


def explicit_keys(config: ConfigModel) -> frozenset[str]:
    """Dotted keys that were given when the configuration was built."""
    return frozenset(
        f"{prefix}{name}"
        for prefix, section in sections(config)
        for name in section.model_fields_set
        if not isinstance(getattr(section, name), ConfigModel)
    )


def check_rules(broken: Iterable[Violation], typed: Collection[str], reporter: Reporter) -> None:
    """Warns of what is inherited.

    Args:
        broken: What breaks a rule.
        typed: Dotted keys that were typed for this command.
        reporter: Hears the warnings.

    Raises:
        ConfigError: Something is wrong that was typed, or that is wrong whoever wrote it.
    """
    found = list(broken)
    wrong = [one for one in found if _is_error(one, typed)]
    if wrong:
        raise config_error(
            [Problem(one.keys[0], "", one.message, code=one.code) for one in wrong],
            hint=f"set {wrong[0].keys[0]} to another value, or leave it out",
        )
    for one in found:
        reporter.warn("inherited_value", one.message)


def _is_error(broken: Violation, typed: Collection[str]) -> bool:
    is_typed = any(key in typed for key in broken.keys)
    return broken.level == "error" or (broken.level == "typed" and is_typed)


def derivations(config: ConfigModel, rules: Mapping[str, str]) -> Iterator[str]:
    """A sentence for every derived value that decides something; others repeat what is known."""
    for key, rule in rules.items():
        section, _, name = key.rpartition(".")
        holder = _at(config, section)
        if name not in holder.no_effect_on_output:
            yield f"{key} from {rule}: {getattr(holder, name)}"


def _at(config: ConfigModel, section: str) -> ConfigModel:
    holder: Any = config
    for name in section.split(".") if section else ():
        holder = getattr(holder, name)
    return holder
