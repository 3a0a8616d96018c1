"""The exact configuration that a run would use, and where each value came from."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlatool.config.explain import to_yaml, value_origins
from vlatool.config.resolve import Resolved, with_derived
from vlatool.config.rules import violations
from vlatool.config.schema import unset_required
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.storage.atomic import remove_partials_of, write_text
from vlatool.storage.documents import DocumentError, read_yaml
from vlatool.storage.uri import local_path

FILE_NAME = "resolved_config.yaml"
_SUFFIXES = (".yaml", ".yml")


@runtime_checkable
class DerivesFromData(Protocol):
    """A configuration some of whose values come from data sets."""

    def derive_from_data(self) -> tuple[Any, Mapping[str, str]]:
        """The configuration with those values, and by which rule each was found."""
        ...


@dataclass(frozen=True)
class ResolveResult:
    """A resolved configuration, ready to print.

    Attributes:
        resolved: The configuration with origins.
        unset: Needed keys without a value.
        output: The file that was written, if any.
        explain: Whether origins are shown.
    """

    resolved: Resolved[Any]
    unset: list[str]
    output: Path | None = None
    explain: bool = False

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        document: dict[str, Any] = {
            "config": self.resolved.config.model_dump(mode="json"),
            "unset": self.unset,
        }
        if self.explain:
            document["origins"] = value_origins(self.resolved)
        if self.output is not None:
            document["output"] = str(self.output)
        return document

    def text(self) -> str:
        """The result as YAML; a last comment names needed keys without a value."""
        text = to_yaml(self.resolved, explain=self.explain)
        if self.unset:
            text += f"# not set, but needed to run: {', '.join(self.unset)}\n"
        return text


def resolve_config(
    resolved: Resolved[Any],
    *,
    explain: bool = False,
    output: str | None = None,
    derive: bool = False,
    reporter: Reporter = NULL,
) -> ResolveResult:
    """Shows, and writes if asked to, a configuration.

    The published keys `resolve_configs` and `resolve_configs_path`, which ask for this, are obeyed
    and not shown as set: what is written trains when it is loaded. What a run would refuse, or warn
    of, is only told.

    Args:
        resolved: What `load_config` returned.
        explain: Whether each value is followed by its origin.
        output: A file to write, or a folder to write `resolved_config.yaml` into.
        derive: Whether data sets are opened for the values that come from them.
        reporter: Hears about the written file, and of values that break a rule.

    Raises:
        UsageError: The file exists and is no resolved configuration of the same command, or has
            another suffix than YAML files have.
    """
    if derive and isinstance(resolved.config, DerivesFromData):
        config, rules = resolved.config.derive_from_data()
        resolved = with_derived(resolved, config, rules)
    resolved, folder = _without_request(resolved)
    target = _target(output or folder) if output or folder else None
    if target is not None:
        _check_target_free(target, resolved)
    for broken in violations(resolved.config):
        reporter.warn("broken_rule", broken.message)
    unset = unset_required(resolved.config)
    result = ResolveResult(resolved, unset, target, explain)
    if target is not None:
        remove_partials_of(target)
        write_text(target, result.text())
        reporter.note(f"wrote {target}")
    return result


def _without_request(resolved: Resolved[Any]) -> tuple[Resolved[Any], str]:
    """The configuration without the request to be shown, and the folder that it names."""
    folder = getattr(resolved.config, "resolve_configs_path", None)
    if not hasattr(resolved.config, "resolve_configs"):
        return resolved, ""
    update = {"resolve_configs": False, "resolve_configs_path": None}
    config = resolved.config.model_copy(update=update)
    origins = {key: one for key, one in resolved.origins.items() if key not in update}
    return replace(resolved, config=config, origins=origins), f"{folder}/" if folder else ""


def _target(output: str) -> Path:
    path = local_path(output)
    if output.endswith("/") or path.is_dir():
        return path / FILE_NAME
    if path.suffix not in _SUFFIXES:
        raise UsageError(
            f"--output {output}: here it is the YAML file to write",
            hint=f"write --output {output}.yaml; the folder of a run is --save-path and --name",
            code="usage.output",
            details={"output": output},
        )
    return path


def _check_target_free(target: Path, resolved: Resolved[Any]) -> None:
    """What is written has every key; a file that somebody typed has some."""
    if not target.exists():
        return
    with suppress(DocumentError, OSError):
        content: object = read_yaml(target)
        if isinstance(content, dict) and content.keys() == resolved.config.model_dump().keys():
            return
    raise UsageError(
        f"{target}: exists and is no configuration that resolve-config wrote",
        hint="choose another --output, or remove it",
        code="usage.output_exists",
        details={"path": str(target)},
    )
