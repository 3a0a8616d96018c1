"""Identity of a run: options that decide its weights, compared with those of an earlier one."""

import re
from collections.abc import Mapping
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.config.schema import default_of
from vlatool.jobs.differences import option_differences
from vlatool.jobs.versions import changed_versions, check_versions, without_versions
from vlatool.training.config import TrainConfig

ORDER = "order of samples"
# Rule by which networks draw random numbers themselves; runs in which they draw none lack the key,
# as do runs of versions with another rule.
RANDOMNESS = "randomness"
BUDGET = TrainConfig.exclusive[0]
# Digests, which are left out of messages.
_DIGEST = re.compile(r"(, )?\b[0-9a-f]{16,}\b")


def upgraded(options: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Options of a run; initial weights, earlier recorded in `model`, are at the root."""
    result, section = dict(options), options.get("model")
    if not isinstance(section, dict) or not section.get("type"):
        return result
    aliases = type(config.model).root_aliases
    result |= {name: section[key] for key, name in aliases.items() if section.get(key)}
    keys, reset = config.model_type.published_start(section)
    result |= keys
    model = {**section, **reset}
    return {**result, "model": {key: model[key] for key in model if key not in aliases}}


def identity_keys(config: ConfigModel) -> dict[str, Any]:
    """Keys and values of a configuration that affect the weights, as nested sections."""
    chosen = config.model_dump(mode="json", exclude=set(config.no_effect_on_output))
    for name in chosen:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            chosen[name] = identity_keys(section)
    return chosen


def with_defaults(before: Mapping[str, Any], config: ConfigModel) -> dict[str, Any]:
    """Options of a run, with defaults for keys that its version of vlatool did not have.

    Keys that had no effect in its version, and are no fields any more, are left out.
    """
    filled = {key: value for key, value in before.items() if key not in config.ignored}
    for name, field in type(config).model_fields.items():
        section, stored = getattr(config, name), before.get(name)
        if isinstance(section, ConfigModel) and isinstance(stored, dict):
            filled[name] = with_defaults(stored, section)
        elif name not in before and name not in config.no_effect_on_output:
            default = default_of(field)
            filled[name] = identity_keys(default) if isinstance(default, ConfigModel) else default
    return filled


def run_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """Texts on configuration keys, data and versions that differ; without digests."""
    before = with_defaults(upgraded(before, config), config)
    if not config.overwrite:
        check_versions(before, now)
    versions = changed_versions(before, now)
    before, now = without_versions(before), without_versions(now)
    known = {*type(config).model_fields, ORDER}
    data_keys = sorted(key for key in {**before, **now} if key not in known)
    data_differences = [
        _difference_text(key, before.get(key), now.get(key))
        for key in data_keys
        if before.get(key) != now.get(key)
    ]
    old, new = (
        {key: value for key, value in options.items() if key not in data_keys}
        for options in (before, now)
    )
    options = sorted(option_differences(old, new), key=lambda text: text.startswith(BUDGET))
    return [*data_differences, *options, *versions]  # the budget, seldom the reason, comes last


def _difference_text(key: str, before: object, now: object) -> str:
    # A value that is only a digest has no text.
    old, new = (_DIGEST.sub("", str(value or "none")) or "some" for value in (before, now))
    name = f"hparams.per_gpu_batch_size or processes, {key}" if key == RANDOMNESS else key
    return f"{name}: {old} (now {new})" if old != new else f"{name}: other contents"
