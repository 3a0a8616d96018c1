"""The shape of the code: who imports whom, what stays light, how long files are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "vlatool"
LAYERS = [
    {"errors", "events"},
    {"findings"},
    {"plugins"},
    {"episode"},
    {"storage", "parallel"},
    {"config"},
    {"jobs"},
    {"transforms"},
    {"artifacts"},
    {"sources", "sinks", "loading", "world"},
    {"models"},
    {"training"},
    {"evaluation"},
    {"inspection", "verification"},
    {"pages"},
    {"workflows"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "accelerate", "transformers", "ray", "webdataset", "boto3", "huggingface_hub"}
MAY_BE_HEAVY = {"loading", "models", "evaluation", "training"}
STAY_LIGHT = {"spec.py", "base.py", "config.py", "__init__.py"}
CLI_MAY_IMPORT = {"errors", "events", "cli"}
# Loaded only once a command has keys to read; test_app guards what `--help` loads.
KEY_READERS = {"keys.py", "key_table.py", "overrides.py"}
LONGEST_FILE = 400

FILES = sorted(SOURCE.rglob("*.py"))
IDS = [str(path.relative_to(SOURCE)) for path in FILES]


def _is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _imports(nodes: list[ast.stmt], *, nested: bool) -> Iterator[str]:
    """Modules imported by statements; with `nested` inside functions too, never for types only."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif _is_type_checking(node):
            continue
        elif nested or isinstance(node, ast.If | ast.Try):
            children = [child for child in ast.walk(node) if isinstance(child, ast.stmt)]
            yield from _imports([child for child in children if child is not node], nested=False)


def _package(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_to_lower_layers(path: Path) -> None:
    own = _package(path)
    if own not in RANK:
        return
    for module in _imports(ast.parse(path.read_text()).body, nested=True):
        parts = module.split(".")
        if parts[0] == "vlatool" and len(parts) > 1 and parts[1] in RANK:
            other = parts[1]
            assert other == own or RANK[other] < RANK[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_heavy_packages_are_imported_where_they_may_be(path: Path) -> None:
    allowed = _package(path) in MAY_BE_HEAVY and path.name not in STAY_LIGHT
    roots = {
        module.split(".")[0] for module in _imports(ast.parse(path.read_text()).body, nested=False)
    }
    assert allowed or not roots & HEAVY


@pytest.mark.parametrize("path", [p for p in FILES if _package(p) == "cli"], ids=lambda p: p.name)
def test_command_files_import_little_at_the_top(path: Path) -> None:
    for module in _imports(ast.parse(path.read_text()).body, nested=False):
        parts = module.split(".")
        if parts[0] == "vlatool" and len(parts) > 1:
            is_key_reader = path.name in KEY_READERS and parts[1] == "config"
            assert parts[1] in CLI_MAY_IMPORT or is_key_reader, f"{path.name} imports {module}"
        assert parts[0] not in HEAVY | {"pydantic", "numpy", "yaml", "click"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "misc", "core", "helpers"}
    assert not [path for path in FILES if path.stem in drawers]
