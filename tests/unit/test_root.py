"""The root of the repository, and what pyproject.toml names."""

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# A new file or folder in the root is a decision: it is the first thing that people see.
IN_ROOT = {
    ".ci", ".github", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE",
    "Makefile", "README.md", "SECURITY.md", "benchmarks", "binary", "clients", "docs", "examples",
    "mkdocs.yml", "presets", "pyproject.toml", "src", "tests",
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_only_the_listed_files_and_folders_stand_in_the_root() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: only git tells our files from those that lie beside them")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {name.split("/")[0] for name in names.splitlines() if (ROOT / name).exists()} == IN_ROOT


def _lists(value: Any, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    if isinstance(value, list):
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lists(item, f"{path}/{key}")


def test_no_list_of_pyproject_has_an_entry_twice() -> None:
    twice = {
        path: entries
        for path, entries in _lists(PROJECT)
        if len(entries) != len({str(entry) for entry in entries})
    }
    assert twice == {}


def test_pyproject_names_only_files_that_exist() -> None:
    """Rules for files that are gone would come back with the next file of that name."""
    patterns = PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    names = [name for pattern in patterns for name in _alternatives(pattern.removeprefix("!"))]
    names += PROJECT["tool"]["pyright"]["strict"]
    names += PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in names if not any(ROOT.glob(name.replace("/**", "/**/*")))] == []


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with braces stands for."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    middle, _, tail = rest.partition("}")
    return [f"{head}{word}{tail}" for word in middle.split(",")]


def test_only_the_extra_hub_is_empty() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert [name for name, requirements in extras.items() if not requirements] == ["hub"]
