"""Gymnasium environments by id: where they are registered, how they are made, their mapping."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

from vlatool.config.resolve import load_config
from vlatool.errors import (
    EnvironmentProblem,
    UsageError,
    VlatoolError,
    install_line,
    missing_package,
)
from vlatool.evaluation.config import RolloutConfig, RolloutTask
from vlatool.jobs.executor import default_workers
from vlatool.plugins import ENVIRONMENTS, EnvironmentSource, did_you_mean

Env = Any
_BUILT_IN = "vlatool/"
_MAPPING = (
    *("cameras", "flipped_cameras", "camera_rotations", "channels_first_cameras"),
    *("fields", "action"),
)


def environment_ids() -> list[str]:
    return [name for source in ENVIRONMENTS.values() if source.ids for name in source.load("ids")()]


def source_of(name: str) -> EnvironmentSource | None:
    """Source of an environment; None if it is not in the table."""
    prefixes = [prefix for prefix in ENVIRONMENTS if name.startswith(prefix)]
    return ENVIRONMENTS[max(prefixes, key=len)] if prefixes else None


def with_mapping(config: RolloutConfig) -> RolloutConfig:
    """Adds the mapping of the preset of the environment to a config without a mapping."""
    source = source_of(config.env)
    if source is None or config.fields or config.action:
        return config
    preset = load_config(RolloutConfig, presets=[source.preset]).config
    names = [name for name in _MAPPING if not getattr(config, name)]
    return config.model_copy(update={name: getattr(preset, name) for name in names})


@dataclass(frozen=True)
class EnvironmentMaker:
    """Function without arguments that creates an environment, in any process."""

    name: str  # id
    # Arguments of the environment.
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # Registration of an environment that the caller registered in this process; None for others.
    spec: Any = None

    def __call__(self) -> Env:
        import gymnasium

        _register(self.name)
        try:
            return gymnasium.make(self.spec or self.name, render_mode="rgb_array", **self.options)
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            if isinstance(error, ModuleNotFoundError) and _extra_of(self.name):
                raise _missing(self.name, error) from None
            raise UsageError(
                f"the environment {self.name!r} cannot be created: {_first_line(error)}",
                hint=_unknown_hint(self.name),
                code="usage.unknown_env",
            ) from error
        except VlatoolError:
            raise
        except Exception as error:
            with_options = f" with {dict(self.options)}" if self.options else ""
            hint = "set env_options to options that its documentation lists"
            raise UsageError(
                f"the environment {self.name!r} cannot be created{with_options}: "
                f"{type(error).__name__}: {_first_line(error)}",
                hint=hint if self.options else "see the documentation of the environment",
                code="usage.env_options",
                details={"env_options": dict(self.options)},
            ) from error

    def default_processes(self) -> int:
        """Processes that its environments use by default.

        The steps of the built-in world take less time than sending their images. An environment
        that other processes cannot make stays in this one.
        """
        is_built_in = self.name.startswith(_BUILT_IN)
        return 1 if is_built_in or not self.is_portable else default_workers()

    @property
    def is_portable(self) -> bool:
        """True if other processes can make the environment."""
        try:
            ForkingPickler.dumps(self)
        except Exception:  # noqa: BLE001 - objects of others raise anything when they are pickled
            return False
        return True


def environment_maker(task: RolloutTask) -> EnvironmentMaker:
    """Function that creates the environment of a task."""
    name = task.env
    if not name:
        raise UsageError(
            "no environment is given",
            hint=f"give one, such as --env {environment_ids()[0]}",
            code="usage.no_env",
        )
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise missing_package("gymnasium") from None
    _register(name)
    known = gymnasium.registry.get(name) if source_of(name) is None else None
    return EnvironmentMaker(name, task.env_options, known)


def _register(name: str) -> None:
    """Registers the environments of the source of an environment."""
    source = source_of(name)
    if source is None:
        return
    try:
        source.load("register")()
    except ModuleNotFoundError as error:
        raise _missing(name, error) from None


def _missing(name: str, error: ModuleNotFoundError) -> EnvironmentProblem:
    extra = _extra_of(name)
    return EnvironmentProblem(
        f"the environment {name!r} needs the package {error.name!r}, which is not installed",
        hint=install_line(extra),
        code="environment.missing_dependency",
        details={"package": error.name, "extra": extra},
    )


def _extra_of(name: str) -> str:
    """Extra that an environment needs; empty for the built-in world and unknown ones."""
    source = source_of(name)
    return "" if source is None else source.extra


def _unknown_hint(name: str) -> str:
    known = environment_ids()
    if source_of(name) is not None and not name.startswith(_BUILT_IN):
        return did_you_mean(name, known)
    built_in = [known_name for known_name in known if known_name.startswith(_BUILT_IN)]
    return f"install the package that defines it; built in: {', '.join(built_in)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
