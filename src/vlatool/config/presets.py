"""Presets: lookup of files by name, in this package or checkout and in installed plugins."""

import difflib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from vlatool.errors import UsageError
from vlatool.storage.uri import is_remote, location

_GROUPS = ("vlatool.formats", "vlatool.models")
_DISPLAYED_ROOT = "presets"


@dataclass(frozen=True)
class PresetInfo:
    """Name, file and description of a preset."""

    name: str  # name on the command line
    kind: str  # folder of the preset: `runs`, `models`, `data`, `preprocess`
    path: Path  # YAML file
    description: str  # first comment line of the file


def builtin_root() -> Path:
    """Folder of the presets of vlatool: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent.parent / "presets"


def plugin_roots() -> list[Path]:
    """Folders `presets` of packages that provide a format or a model type."""
    return _roots_on(tuple(sys.path))


@cache  # each file that a configuration includes is compared with them
def _roots_on(_path: tuple[str, ...]) -> list[Path]:
    packages: set[str] = set()
    for group in _GROUPS:
        for point in entry_points(group=group):
            packages.add(point.module.partition(".")[0])
    roots: list[Path] = []
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            continue
        for folder in spec.submodule_search_locations:
            root = Path(folder) / "presets"
            if root.is_dir():
                roots.append(root)
    return roots


def preset_names(roots: Sequence[Path] | None = None) -> list[str]:
    """All names of presets, sorted."""
    return sorted(info.name for info in list_presets(roots))


def list_presets(roots: Sequence[Path] | None = None) -> list[PresetInfo]:
    """All presets."""
    return [PresetInfo(path.stem, kind, path, _description(path)) for path, kind in _files(roots)]


def preset_path(name: str, roots: Sequence[Path] | None = None, kinds: Sequence[str] = ()) -> Path:
    """Returns the file of a preset, given by name or by path.

    `kinds` are the allowed kinds (folders) of presets; empty allows all.
    """
    if name.endswith(".yaml") or "/" in name:
        candidates = [location(name)]
        if not is_remote(candidates[0]):
            for root in _preset_roots(roots):
                candidates += [root / name, root / f"{name}.yaml"]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    known: list[str] = []
    for path, kind in _files(roots):
        is_allowed = not kinds or not kind or kind in kinds
        if is_allowed:
            known.append(path.stem)
        if path.stem.replace("_", "-") != name.replace("_", "-"):
            continue
        if not is_allowed:
            raise UsageError(
                f"the preset {name!r} is of kind {kind}, which this command cannot use",
                hint=f"use a preset of kind {' or '.join(kinds)}; `vlatool presets` lists all "
                "presets",
                code="usage.conflict",
                details={"preset": name, "kind": kind, "kinds": list(kinds)},
            )
        return path
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    raise UsageError(
        f"there is no preset {name!r}",
        hint=f"did you mean {near[0]}?" if near else "`vlatool presets` lists the presets",
        code="usage.unknown_name",
        details={"preset": name, "known": known},
    )


def preset_info(name: str, roots: Sequence[Path] | None = None) -> PresetInfo:
    """Preset with a name, or the file at a path."""
    path = preset_path(name, roots)
    description = "" if is_remote(path) else _description(path)
    return PresetInfo(path.stem, preset_kind(path, roots), path, description)


def preset_kind(path: Path, roots: Sequence[Path] | None = None) -> str:
    """Folder of a preset below a preset folder; empty for any other file."""
    if is_remote(path):
        return ""
    for root in _preset_roots(roots):
        if path.resolve().is_relative_to(root.resolve()):
            return _kind(path.resolve(), root.resolve())
    return ""


def display_path(path: Path, roots: Sequence[Path] | None = None) -> str:
    """Returns the name of a file for messages: `presets/...` below a preset folder, else a path."""
    if is_remote(path):
        return str(path.resolve())
    if path.is_absolute():
        place = path.resolve()
        for root in _preset_roots(roots):
            if place.is_relative_to(root.resolve()):
                return str(_DISPLAYED_ROOT / place.relative_to(root.resolve()))
    return os.path.normpath(path)


def _preset_roots(roots: Sequence[Path] | None) -> Iterator[Path]:
    """Yields the preset folder of vlatool, then the folders of plugins, which are found lazily."""
    if roots is not None:
        yield from roots
        return
    yield builtin_root()
    yield from plugin_roots()


def _files(roots: Sequence[Path] | None) -> Iterator[tuple[Path, str]]:
    """Yields the file and the kind of each preset; a plugin cannot replace one of vlatool."""
    names: set[str] = set()
    for root in _preset_roots(roots):
        for path in sorted(root.rglob("*.yaml")):
            if path.stem not in names:
                names.add(path.stem)
                yield path, _kind(path, root)


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
