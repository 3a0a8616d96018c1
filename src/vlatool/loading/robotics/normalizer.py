"""Normalization of the fields of a run, from statistics and config."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.loading.robotics.config import NormalizeConfig, RoboticsDataConfig
from vlatool.transforms.normalize import FieldScale, field_scale, field_width


class Normalizer:
    """Normalizes and denormalizes the fields of a run."""

    def __init__(
        self,
        config: RoboticsDataConfig,  # section `data`, derived
        statistics: Mapping[str, Mapping[str, Any]],  # map from field name to statistics entry
        statistics_past: int,  # index of the anchor in statistics per time step
    ) -> None:
        past, future = config.lowdim_past_timesteps, config.lowdim_future_timesteps
        if past is None or future is None:  # a damaged run; loading derives both
            raise DataError(
                "data.lowdim_past_timesteps or data.lowdim_future_timesteps is not set",
                hint="copy the run again, with its config.yaml",
                code="data.broken_config",
            )
        self._first = statistics_past - past
        self._length = past + 1 + future
        names = dict.fromkeys([*config.action_fields, *config.proprioception_fields])
        self._scales = {
            name: scale_of(name, statistics.get(name), config.normalization) for name in names
        }
        for name, scale in self._scales.items():
            self._check_steps(name, scale)

    def _check_steps(self, field: str, scale: FieldScale) -> None:
        steps = len(scale.center) if scale.center.ndim == 2 else None
        if steps is not None and (self._first < 0 or self._first + self._length > steps):
            raise DataError(
                f"the statistics of field {field!r} have {counted(steps, 'step')}, the window "
                "is steps "
                f"{self._first} to {self._first + self._length - 1}",
                hint="compute statistics with `vlatool stats compute DATA`, or use one scale for "
                "all steps: data.normalization.scope=global",
                code="data.broken_statistics",
                details={"field": field},
            )

    def scale(self, field: str, steps: int) -> FieldScale:
        """Returns the scale of the first `steps` steps of the window."""
        return self._scales[field].steps(self._first, steps)

    def normalize(self, field: str, values: Array) -> Array:
        """Normalizes values [..., S, C] of the first S steps of the window; float32."""
        return self.scale(field, values.shape[-2]).normalize(values.astype(np.float32))

    def denormalize(self, field: str, values: Array) -> Array:
        """Inverse of `normalize`; float64."""
        return self.scale(field, values.shape[-2]).denormalize(values.astype(np.float64))

    def constant(self, fields: Sequence[str]) -> Array:
        """Mask bool [sum of widths] of the dimensions that are constant over the data."""
        return np.concatenate([self._scales[name].constant for name in fields])


def scale_of(name: str, stats: Mapping[str, Any] | None, section: NormalizeConfig) -> FieldScale:
    """Scale of a field by its statistics entry; one without normalization."""
    config = section.for_field(name)
    if stats is None:
        raise DataError(
            f"the statistics have no field {name!r}",
            hint="preprocess the data again, or remove the field from the config",
            code="data.missing_statistics",
            details={"field": name},
        )
    if not config.enabled:
        width = field_width(name, stats)
        return FieldScale(
            np.zeros(width, np.float32), np.ones(width, np.float32), np.zeros(width, bool)
        )
    return field_scale(
        stats,
        field=name,
        method=config.method,
        scope=config.scope,
        epsilon=config.epsilon,
        centered=config.centered_norm,
    )
