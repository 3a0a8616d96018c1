"""Identity of a run: options that decide its weights, compared with those of an earlier one."""

import re
from collections.abc import Mapping
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.jobs.differences import option_differences
from vlatool.jobs.versions import changed_versions, check_versions, without_versions
from vlatool.training.config import TrainConfig

# Rule by which networks draw random numbers themselves; runs in which they draw none lack the key.
RANDOMNESS = "randomness"
BUDGET = TrainConfig.exclusive[0]
# Digests, which are left out of messages.
_DIGEST = re.compile(r"(, )?\b[0-9a-f]{16,}\b")


def identity_keys(config: ConfigModel) -> dict[str, Any]:
    """Keys and values of a configuration that affect the weights, as nested sections."""
    chosen = config.model_dump(mode="json", exclude=set(config.no_effect_on_output))
    for name in chosen:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            chosen[name] = identity_keys(section)
    return chosen


def run_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """Texts on configuration keys, data and versions that differ; without digests."""
    if not config.overwrite:
        check_versions(before, now)
    versions = changed_versions(before, now)
    before, now = without_versions(before), without_versions(now)
    known = {*type(config).model_fields}
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
