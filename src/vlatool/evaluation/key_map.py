"""Names of an environment or of a client of a server, mapped to the fields of a policy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.config import FieldMap, RolloutConfig
from vlatool.evaluation.control import RobotState, as_array, channels_last
from vlatool.events import counted
from vlatool.models.policy import Policy
from vlatool.plugins import did_you_mean
from vlatool.transforms.geometry import rotate

# Kinds of numpy types: booleans, integers and floats.
_NUMBERS = "biuf"


class KeyMap:
    """Mapping of observations with other names to those of a policy, and of its commands back."""

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        self._sees = policy.sees
        self._config = config
        _check(policy, config)
        # Length of the action.
        self.action_width = sum(policy.actions[part.field] for part in config.action)

    @property
    def names(self) -> list[str]:
        config = self._config
        cameras = [config.cameras.get(name, name) for name in self._sees.cameras]
        fields = [config.fields[name].key for name in self._sees.fields]
        has_words = self._sees.instruction and config.instruction is None
        words = [config.instruction_key] if has_words else []
        return list(dict.fromkeys([*cameras, *filter(None, fields), *words]))

    def state(self, observation: Mapping[str, Any]) -> RobotState:
        """Images and fields of the policy."""
        return RobotState(
            images={name: self._image(observation, name) for name in self._sees.cameras},
            fields={name: self._field(observation, name) for name in self._sees.fields},
        )

    def instruction(self, observation: Mapping[str, Any]) -> Any:
        """The fixed instruction, or that of the observation."""
        fixed = self._config.instruction
        return observed_value(observation, self._config.instruction_key) if fixed is None else fixed

    def action(self, commands: Mapping[str, Array]) -> Array:
        """Commands of the policy [..., C] by field as one array [..., sum of C]."""
        parts = [commands[part.field] * part.scale for part in self._config.action]
        return np.concatenate(parts, axis=-1)

    def _image(self, observation: Mapping[str, Any], camera: str) -> Array:
        image = as_array(
            camera, observed_value(observation, self._config.cameras.get(camera, camera))
        )
        image = channels_last(image, is_first=camera in self._config.channels_first_cameras)
        if image.ndim and camera in self._config.flipped_cameras:
            image = image[::-1]
        turns = self._config.camera_rotations.get(camera, 0)
        return rotate(image, turns) if image.ndim > 1 else image

    def _field(self, observation: Mapping[str, Any], name: str) -> Array:
        source, width = self._config.fields[name], self._sees.fields[name]
        if source.constant is not None:
            values = np.asarray(source.constant, np.float64)
        else:
            key = _key(source, name)
            values = np.ravel(as_array(key, observed_value(observation, key)))
            if values.dtype.kind not in _NUMBERS:
                raise DataError(
                    f"{key!r} of the observation is {values.dtype}, not numbers",
                    code="data.field_shape",
                    details={"field": name},
                )
            values = values[source.start : source.stop].astype(np.float64) * source.scale
        if len(values) != width:
            raise DataError(
                f"the field {name!r} gets {counted(len(values), 'number')}, the policy takes "
                f"{width}",
                hint=f"correct fields.{name}: its start and stop, or its constant",
                code="data.field_shape",
                details={"field": name, "width": width},
            )
        return values


def has_mapping(config: RolloutConfig) -> bool:
    """True if names are mapped; otherwise they are those of the policy."""
    return bool(config.cameras or config.fields or config.action)


def _check(policy: Policy, config: RolloutConfig) -> None:
    """Raises DataError if a field of the policy or a part of the action is not mapped."""
    for name in policy.sees.fields:
        if name not in config.fields:
            raise DataError(
                f"the field {name!r} of the policy is mapped to no observation key",
                hint=f"set fields.{name}.key, or use a rollout preset",
                code="data.unmapped_field",
                details={"field": name},
            )
        if config.fields[name].constant is None:
            _key(config.fields[name], name)
    available = list(policy.actions)
    if not config.action:
        raise DataError(
            "the action of the environment is mapped to no field of the policy",
            hint=f"set action: [{{field: ...}}]; the policy has {', '.join(available)}",
            code="data.unmapped_action",
        )
    for part in config.action:
        if part.field not in available:
            raise DataError(
                f"the policy has no action field {part.field!r}",
                hint=did_you_mean(part.field, available),
                code="data.unknown_field",
            )


def _key(source: FieldMap, name: str) -> str:
    if source.key is None:
        raise DataError(
            f"fields.{name} has neither key nor constant",
            hint="give the key of the observation",
            code="data.unmapped_field",
        )
    return source.key


def observed_value(observation: Mapping[str, Any], key: str) -> Any:
    """Value of a nested observation; dots separate nested keys."""
    value: Any = observation
    for part in [key] if key in observation else key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [str(name) for name in value] if isinstance(value, Mapping) else []
            raise DataError(
                f"the observation has no key {key!r}",
                hint=did_you_mean(part, known),
                code="data.unknown_observation",
            )
        value = value[part]
    return value
