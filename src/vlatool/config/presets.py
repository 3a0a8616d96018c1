"""Preset names to files: those of this package or checkout, and those of installed plugins."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from vlatool.errors import UsageError
from vlatool.plugins import did_you_mean
from vlatool.storage.uri import is_remote, location

_GROUPS = ("vlatool.formats", "vlatool.models")
_SHOWN_ROOT = "presets"


@dataclass(frozen=True)
class PresetInfo:
    """One preset.

    Attributes:
        name: What users type.
        kind: The folder it lies in: `runs`, `models`, `data`, `preprocess`.
        path: Its file.
        description: The first comment line.
    """

    name: str
    kind: str
    path: Path
    description: str


def builtin_root() -> Path:
    """The folder of our own presets: inside a wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent.parent / "presets"


def plugin_roots() -> list[Path]:
    """The `presets` folders of packages that provide a format or a model type."""
    packages = {
        point.module.partition(".")[0] for group in _GROUPS for point in entry_points(group=group)
    }
    roots: list[Path] = []
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec is not None else None
        roots += [Path(folder) / "presets" for folder in folders or ()]
    return [root for root in roots if root.is_dir()]


def preset_names(roots: Sequence[Path] | None = None) -> list[str]:
    """Every name, sorted."""
    return sorted(info.name for info in list_presets(roots))


def list_presets(roots: Sequence[Path] | None = None) -> list[PresetInfo]:
    """Every preset; a plugin cannot shadow one of ours.

    Args:
        roots: Folders to search; ours and those of plugins by default.
    """
    found: dict[str, PresetInfo] = {}
    for root in _roots_until_found(roots):
        for path in sorted(root.rglob("*.yaml")):
            info = PresetInfo(path.stem, _kind(path, root), path, _description(path))
            found.setdefault(info.name, info)
    return list(found.values())


def preset_path(name: str, roots: Sequence[Path] | None = None, kinds: Sequence[str] = ()) -> Path:
    """The file of a preset, or of a path given in place of a name.

    Args:
        name: With dashes or underscores.
        roots: Folders to search; ours and those of plugins by default.
        kinds: The folders below them whose presets fit; empty for all.

    Raises:
        UsageError: Nothing has this name, and the nearest names are the hint; or it is of another
            kind.
        StorageError: The storage that the path is in cannot be read.
    """
    wanted = name.replace("_", "-")
    if name.endswith(".yaml") or "/" in name:
        return _by_path(name, roots)
    for root in _roots_until_found(roots):
        for path in sorted(root.rglob("*.yaml")):
            if path.stem.replace("_", "-") == wanted:
                _check_kind(name, _kind(path, root), kinds)
                return path
    raise _unknown(name, [one.name for one in list_presets(roots) if _fits(one.kind, kinds)])


def preset_kind(path: Path, roots: Sequence[Path] | None = None) -> str:
    """The folder below a preset folder that a file lies in; empty for any other file."""
    if is_remote(path):
        return ""
    for root in _roots_until_found(roots):
        if path.resolve().is_relative_to(root.resolve()):
            return _kind(path.resolve(), root.resolve())
    return ""


def _fits(kind: str, kinds: Sequence[str]) -> bool:
    return not kinds or not kind or kind in kinds


def _check_kind(name: str, kind: str, kinds: Sequence[str]) -> None:
    if not _fits(kind, kinds):
        raise UsageError(
            f"the preset {name!r} is one of {kind}, which this command does not take",
            hint=f"`vlatool presets` lists them; here fit those of {', '.join(kinds)}",
            code="usage.preset_kind",
            details={"preset": name, "kind": kind, "kinds": list(kinds)},
        )


def display_path(path: Path, roots: Sequence[Path] | None = None) -> str:
    """How origins name a file: `presets/...` below a preset folder, else as it was given."""
    if is_remote(path):
        return str(path.resolve())
    if path.is_absolute():
        for root in _roots_until_found(roots):
            if path.resolve().is_relative_to(root.resolve()):
                return str(_SHOWN_ROOT / path.resolve().relative_to(root.resolve()))
    return os.path.normpath(path)


def _roots_until_found(roots: Sequence[Path] | None) -> Iterator[Path]:
    """Preset folders, ours first: those of plugins are looked for only when they are needed."""
    if roots is not None:
        yield from roots
        return
    yield builtin_root()
    yield from plugin_roots()


def _by_path(name: str, roots: Sequence[Path] | None) -> Path:
    candidates = [location(name)]
    if not is_remote(candidates[0]):
        for root in _roots_until_found(roots):
            candidates += [root / name, root / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise _unknown(name, preset_names(roots))


def _unknown(name: str, known: list[str]) -> UsageError:
    return UsageError(
        f"unknown preset {name!r}",
        hint=did_you_mean(Path(name).stem.replace("_", "-"), known) or "there are no presets here",
        code="usage.unknown_preset",
        details={"preset": name, "known": known},
    )


def _kind(path: Path, root: Path) -> str:
    folder = path.parent.relative_to(root).as_posix()
    return "" if folder == "." else folder


def _description(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("#"):
                return line.lstrip("#").strip()
            if line.strip():
                break
    return ""
