"""Resolved configuration of a run with the origin of each value, and the content of a preset."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlatool.config import resolve, yaml_text
from vlatool.config.base import ConfigModel, check_required, ignored_names, required_field
from vlatool.config.coerce import plain
from vlatool.config.presets import PresetInfo, display_path, preset_info
from vlatool.config.rules import violations
from vlatool.config.schema import unset_required
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.results import MERGED, OPTIONAL, UNLISTED, Result
from vlatool.storage.atomic import remove_partials_of, write_text
from vlatool.storage.documents import DocumentError, read_yaml
from vlatool.storage.uri import local_path

FILE_NAME = "resolved_config.yaml"
_SUFFIXES = (".yaml", ".yml")


@runtime_checkable
class DerivesFromData(Protocol):
    """A configuration that takes some of its values from data sets."""

    def derive_from_data(self) -> tuple[Any, Mapping[str, str]]:
        """Returns the configuration with the derived values, and the rule of each value."""
        ...


@dataclass(frozen=True)
class ResolveResult(Result):
    """A resolved configuration, ready to print."""

    config: Mapping[str, Any]
    unset: list[str]  # required keys without a value
    origins: Mapping[str, str] | None = field(metadata=OPTIONAL)  # of each value, if requested
    output: Path | None = field(metadata=OPTIONAL)  # file that was written
    yaml: str = field(metadata=UNLISTED)

    def lines(self) -> list[str]:
        if self.output is None:
            return [self.yaml]
        unset = f"; required, but not set: {', '.join(self.unset)}" if self.unset else ""
        return [f"{self.output}: written{unset}"]


def resolve_config(
    resolved: resolve.Resolved[Any],
    *,
    explain: bool = False,
    output: str | None = None,
    derive: bool = False,
    reporter: Reporter = NULL,
) -> ResolveResult:
    """Returns a configuration for display and writes it if requested.

    The published keys `resolve_configs` and `resolve_configs_path` request the same; they are reset
    in the result, so that `train` accepts the written file. Values that a run would reject give
    warnings, no errors.

    Args:
        resolved: Result of `load_config`.
        explain: Show the origin of each value.
        output: File to write, or folder for `resolved_config.yaml`.
        derive: Open data sets for the values that are derived from them.
        reporter: Receives violated rules.

    Raises:
        UsageError: The file exists and is not a resolved configuration of the same command, or its
            name does not end in .yaml or .yml.
    """
    if derive and isinstance(resolved.config, DerivesFromData):
        config, rules = resolved.config.derive_from_data()
        resolved = resolve.with_derived(resolved, config, rules)
    resolved, folder = _without_request(resolved)
    target = _target(output or folder) if output or folder else None
    if target is not None:
        _check_target_free(target, resolved)
    for violation in violations(resolved.config):
        reporter.warn("broken_rule", violation.message)
    unset = unset_required(resolved.config)
    text = yaml_text.to_yaml(resolved, explain=explain)
    if unset:
        text += f"# required, but not set: {', '.join(unset)}\n"
    if target is not None:
        remove_partials_of(target)
        write_text(target, text)
    origins = yaml_text.value_origins(resolved) if explain else None
    return ResolveResult(resolved.config.model_dump(mode="json"), unset, origins, target, text)


def _without_request(resolved: resolve.Resolved[Any]) -> tuple[resolve.Resolved[Any], str]:
    folder = getattr(resolved.config, "resolve_configs_path", None)
    if not hasattr(resolved.config, "resolve_configs"):
        return resolved, ""
    update = {"resolve_configs": False, "resolve_configs_path": None}
    config = resolved.config.model_copy(update=update)
    origins = {key: origin for key, origin in resolved.origins.items() if key not in update}
    return replace(resolved, config=config, origins=origins), f"{folder}/" if folder else ""


def _target(output: str) -> Path:
    path = local_path(output)
    if output.endswith("/") or path.is_dir():
        return path / FILE_NAME
    if path.suffix not in _SUFFIXES:
        raise UsageError(
            f"--output {output}: the name of a YAML file ends in .yaml or .yml",
            hint=f"give --output {output}.yaml; --save-path and --name set the folder of a run",
            code="usage.bad_value",
            details={"output": output},
        )
    return path


def _check_target_free(target: Path, resolved: resolve.Resolved[Any]) -> None:
    """Raises UsageError if a file exists that this module has not written: it lacks keys."""
    if not target.exists():
        return
    with suppress(DocumentError, OSError):
        content: object = read_yaml(target)
        config = resolved.config
        if isinstance(content, dict):
            keys = content.keys() - ignored_names(type(config)).keys()
            if keys == {*config.model_dump()}:
                return
    raise UsageError.at(
        target,
        "exists, and resolve-config has not written it",
        hint="choose another --output, or remove it",
        code="usage.output_exists",
    )


class PresetsShowConfig(ConfigModel):
    """Options of `vlatool presets show`."""

    name: str = required_field("", "Name of a preset, or the path of a YAML file.")


@dataclass(frozen=True)
class ShownPreset(Result):
    """A preset: its values in the section that it fills, with included files merged."""

    preset: PresetInfo = field(metadata=MERGED)
    values: Mapping[str, Any]

    def lines(self) -> list[str]:
        """YAML for `--config`, after comments with the name and the description."""
        head = f"# {display_path(self.preset.path)}"
        text = f"{head}: {self.preset.description}" if self.preset.description else head
        return [text, yaml_text.values_to_yaml(self.values)]


def presets_show(config: PresetsShowConfig, *, reporter: Reporter = NULL) -> ShownPreset:
    """Returns a preset.

    Raises:
        UsageError: The name is missing or unknown.
        ConfigError: A file cannot be read.
    """
    check_required(config, "vlatool presets show NAME; `vlatool presets` lists the names")
    from vlatool.training.config import TrainConfig  # imports numpy

    tree = resolve.read_preset(TrainConfig, config.name)
    return ShownPreset(preset_info(config.name), plain(tree))
