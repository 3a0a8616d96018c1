"""Structure of the code: imports, homes of names, light modules, sizes."""

import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

from vlatool import plugins

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "vlatool"

# A room imports only from rooms above it; rooms on one line do not import each other.
LAYERS = [
    {"errors", "events", "credentials", "results", "withdrawn"},
    {"findings"},
    {"plugins", "episode"},
    {"storage"},
    {"config"},
    {"jobs"},
    {"media"},
    {"transforms"},
    {"report"},
    {"conventions"},
    {"recordings"},
    {"datasets"},
    {"checkpoints"},
    {"loading", "world"},
    {"models"},
    {"training"},
    {"tokens"},
    {"evaluation"},
    {"serving", "launching"},
    {"inspection"},
    {"workflows"},
    {"cli", "testing", "plugin", "formats"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Imports from one folder into another of the same room, other than into its parent folder.
FOLDER_IMPORTS = {
    ("datasets/fast", "datasets/jsonl"),  # fitted on the actions of windows
    ("datasets/fast", "datasets/lbm"),  # or of shards
    ("datasets/fast", "datasets/samples"),  # the profile of a tokenizer
    ("datasets/frames", "datasets/lbm"),  # frames are shards of whole episodes
    ("datasets/image_shards", "datasets/jsonl"),  # images of windows
    ("datasets/image_shards", "datasets/lbm"),  # the index beside a tar
    ("datasets/jsonl", "datasets/codes"),  # the images that are encoded
    ("datasets/lbm", "datasets/stats"),
    ("datasets/samples", "datasets/codes"),
    ("datasets/samples", "datasets/jsonl"),
    ("models/diffusion_policy", "models/backbones"),
    ("models/titok", "models/vqgan"),
    ("recordings", "recordings/curation"),  # `--episodes @CURATION`
    ("recordings", "recordings/lerobot"),  # the name that tells raw episodes from other files
    ("recordings/folder", "recordings/zarr"),  # stores are tables
    ("checkpoints", "checkpoints/experiment"),  # a published run
}

HEAVY = {"torch", "accelerate", "transformers", "ray", "webdataset", "boto3", "huggingface_hub"}
MAY_BE_HEAVY = {
    "loading": {"torch", "webdataset"},
    "models": {"torch", "transformers"},
    "training": {"torch", "accelerate"},
    "tokens": {"torch"},
    "evaluation": {"torch", "accelerate"},
    "serving": {"torch", "accelerate"},
    "testing": {"torch"},
}
STAY_LIGHT = {"spec.py", "base.py", "config.py", "__init__.py"}
CHECKS = "testing"  # contract checks, for tests of plugins
CLI_MAY_IMPORT = {"errors", "events", "credentials", "results", "cli"}
# Loaded only once a command has keys to read; test_app guards what `--help` loads.
KEY_READERS = {"keys.py"}

NAMELESS = ("jobs", "storage", "training")  # they know no model, sink, format or kind
NAMELESS_FOLDERS = ("loading",)  # its own files; the folders below are the kinds
OBJECTIVE_WORDS = {"images"}  # images that an objective logs; also a data kind
ARTIFACT_FILES = {
    "latest.json", "lowdim.npz", "manifest.jsonl", "metrics.jsonl", "model.safetensors",
    "preprocessing_config.yaml", "processing_metadata.json", "stats.json", "trainer.pt",
}  # fmt: skip
ARTIFACT_ROOMS = {"media", "recordings", "datasets", "checkpoints"}
ARTIFACT_PATTERN = re.compile(r"shard_[*{\d][^/]*|episode_[^/]*\.tar")
JOB_FOLDER = ".vlatool"

LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS, DEEPEST = 800, 80, 6, 2
# Ceilings: they rise only with what a change adds on purpose, and fall with what goes.
MOST_TOKENS = 749_000
# In thousands, for each room; "" are the files above the rooms. Each only falls.
ROOM_TOKENS = {
    "recordings": 170.6,
    "datasets": 70.6,
    "media": 19.5,
    "checkpoints": 16.1,
    "formats": 0.3,
    "models": 94.8,
    "workflows": 72.4,
    "training": 37.6,
    "loading": 39.7,
    "storage": 36.5,
    "evaluation": 31.2,
    "cli": 17.6,
    "transforms": 25.2,
    "jobs": 18.3,
    "config": 17.5,
    "world": 16.3,
    "serving": 11.6,
    "conventions": 11.3,
    "": 10.4,
    "testing": 7.4,
    "report": 10.1,
    "launching": 5.4,
    "tokens": 8.4,
}
MOST_TOKENS_PER_LINE = 8.81
# In 1000 tokens.
MOST_COMPREHENSIONS = 3.31
MOST_CONDITIONALS = 2.31

DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)

FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [path.relative_to(SOURCE).as_posix() for path in FILES]


def _module(name: str) -> str:
    """The module that a file is, without `vlatool.`; a package is its folder."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {_module(name): name for name in NAMES if name != "__init__.py"}


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse((SOURCE / name).read_text())


@cache
def _nodes(name: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(_tree(name)))


def _statements(node: ast.AST, *, nested: bool) -> Iterator[ast.stmt]:
    """Statements below a node; with `nested` inside functions too, never those for types only."""
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.expr) or (is_function and not nested):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from _statements(child, nested=nested)


@cache
def _imports(name: str, *, nested: bool) -> frozenset[str]:
    """Modules that a file imports, and names from modules: `a.b` for `from a import b`."""
    modules: set[str] = set()
    for statement in _statements(_tree(name), nested=nested):
        if isinstance(statement, ast.Import):
            modules.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            modules.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    return frozenset(modules)


@cache
def _own_imports(name: str) -> frozenset[str]:
    """Modules of ours that a file imports, without `vlatool.`."""
    imported = _imports(name, nested=True)
    paths = [path.removeprefix("vlatool.") for path in imported if path.startswith("vlatool.")]
    modules = {path if path in MODULES else path.rpartition(".")[0] for path in paths}
    return frozenset(module for module in modules & MODULES.keys() if MODULES[module] != name)


def _room(name: str) -> str:
    return PurePosixPath(name).parts[0].removesuffix(".py")


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One import cycle, or an empty result."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@cache
def _texts(name: str) -> frozenset[str]:
    """String constants of a file, without docstrings; `*` for each expression of an f-string."""
    bare = {id(node.value) for node in _nodes(name) if isinstance(node, ast.Expr)}
    joined = [node for node in _nodes(name) if isinstance(node, ast.JoinedStr)]
    skipped = bare | {id(part) for node in joined for part in node.values}
    texts = {"".join(_text(part) for part in node.values) for node in joined}
    for node in _nodes(name):
        if isinstance(node, ast.Constant) and id(node) not in skipped:
            texts.update([node.value] if isinstance(node.value, str) else [])
    return frozenset(texts)


def _text(part: ast.expr) -> str:
    """A part of an f-string."""
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "*"


def _functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in _nodes(name):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _lines(broken: Iterable[tuple[str, str]]) -> list[str]:
    """One line per problem."""
    return [f"{name}: {problem}" for name, problem in broken]


def test_imports_point_to_lower_layers() -> None:
    assert {_room(name) for name in NAMES} <= {*RANK, "__init__"}, "a room that LAYERS lacks"
    broken = [
        (name, module)
        for name in MODULES.values()
        for module in sorted(_own_imports(name))
        if (other := _room(MODULES[module])) != _room(name) and RANK[other] >= RANK[_room(name)]
    ]
    assert _lines(broken) == []


def test_map_of_the_documentation_shows_the_rooms_and_their_order() -> None:
    page = (ROOT / "docs/reference/architecture.md").read_text()
    table = page.partition("| Room |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = [PurePosixPath(name).stem for cell in cells for name in re.findall("`(.+?)`", cell)]
    rooms = {_room(name) for name in NAMES} - {"__init__", "__main__"}
    assert sorted(named) == sorted(rooms)

    order = "".join(
        line
        for line in page.splitlines()
        if line.startswith("    errors events credentials results withdrawn |")
    )
    lines = page.partition(order)[2].partition("\n\n")[0]
    shown = [set(names.split()) for names in f"{order}{lines}".split("|")]
    assert shown == [names & rooms for names in LAYERS if names & rooms]

    drawn = set(re.findall(r"\w+", (ROOT / "docs/diagrams/rooms.svg").read_text()))
    assert {name for name in rooms if (SOURCE / name).is_dir()} - drawn == {"testing", "formats"}


def test_modules_models_and_folders_do_not_import_each_other_in_a_circle() -> None:
    assert _cycle({module: _own_imports(name) for module, name in MODULES.items()}) == []

    graph: dict[str, set[str]] = {}
    for module, name in MODULES.items():
        if _room(name) == "models":
            imports = [node for node in _nodes(name) if isinstance(node, ast.ImportFrom)]
            modules = {(node.module or "").removeprefix("vlatool.") for node in imports}
            graph[module] = {other for other in modules & MODULES.keys() if other != module}
    assert _cycle(graph) == []

    graph: dict[str, set[str]] = {}
    for source, target in _sideways():
        graph.setdefault(source, set()).add(target)
    assert _cycle(graph) == []


def _sideways() -> set[tuple[str, str]]:
    """(from, to) of imports between folders of one room, other than into a parent folder."""
    found: set[tuple[str, str]] = set()
    for name in MODULES.values():
        source = _folder(name)
        for module in _own_imports(name):
            target = _folder(MODULES[module])
            is_same_room = _room(name) == _room(MODULES[module])
            is_parent = source == target or source.startswith(f"{target}/")
            if is_same_room and not is_parent:
                found.add((source, target))
    return found


def test_imports_from_one_folder_into_another_are_listed() -> None:
    assert _sideways() == FOLDER_IMPORTS


def test_heavy_packages_are_imported_where_they_may_be() -> None:
    broken: list[str] = []
    for name in NAMES:
        allowed = set() if Path(name).name in STAY_LIGHT else MAY_BE_HEAVY.get(_room(name), set())
        roots = {module.partition(".")[0] for module in _imports(name, nested=False)}
        broken += [f"{name} imports {root}" for root in roots & HEAVY - allowed]
    assert broken == []


def test_command_files_import_little_at_the_top() -> None:
    broken: list[str] = []
    for name in (name for name in NAMES if _room(name) == "cli"):
        may = CLI_MAY_IMPORT | ({"config"} if Path(name).name in KEY_READERS else set())
        for module in _imports(name, nested=False):
            root, package = [*module.split("."), ""][:2]
            if root in HEAVY | {"pydantic", "numpy", "yaml", "click"} or (
                root == "vlatool" and package in RANK and package not in may
            ):
                broken.append(f"{name} imports {module}")
    assert broken == []


def _known_names() -> set[str]:
    """Built-in formats, sinks, models and kinds of data."""
    tables = ("FORMATS", "SINKS", "MODELS", "DATA_KINDS")
    names = {"spartan", "lerobot", "lbm", "robotics", "diffusion_policy"}
    for table in (getattr(plugins, name, None) for name in tables):
        if table is not None:
            names |= {entry.name for entry in table.entries() if entry.origin == "vlatool"}
    return names


def _is_nameless(name: str) -> bool:
    return _room(name) in NAMELESS or _folder(name) in NAMELESS_FOLDERS


def test_rooms_that_serve_all_formats_sinks_and_models_name_none() -> None:
    known = _known_names()
    broken: list[tuple[str, str]] = []
    for name in filter(_is_nameless, NAMES):
        texts = _texts(name)
        named = {text for text in texts if text.startswith("vlatool.")}
        parts = {
            part for path in {*_imports(name, nested=True), *named} for part in path.split(".")
        }
        broken += [(name, word) for word in sorted(texts & (known - OBJECTIVE_WORDS))]
        broken += [(name, f"import {word}") for word in sorted(parts & known)]
    assert _lines(broken) == []


def test_files_for_all_kinds_of_data_import_none_of_them() -> None:
    broken = [
        (name, module)
        for name in MODULES.values()
        if _folder(name) in NAMELESS_FOLDERS
        for module in sorted(_own_imports(name))
        if _folder(MODULES[module]).startswith(f"{_folder(name)}/")
    ]
    assert _lines(broken) == []


def _file_names(name: str) -> Iterator[str]:
    """Parts of paths among the constants of a file; sentences are none."""
    for text in _texts(name):
        if not re.search(r"\s", text):
            yield from text.split("/")


def test_names_of_files_stand_in_their_rooms_and_that_of_the_job_folder_in_jobs_only() -> None:
    broken = [
        (name, part)
        for name in NAMES
        for part in _file_names(name)
        if (_room(name) != "jobs" and part == JOB_FOLDER)
        or (
            _room(name) not in ARTIFACT_ROOMS
            and (part in ARTIFACT_FILES or ARTIFACT_PATTERN.fullmatch(part))
        )
    ]
    assert _lines(broken) == []


def test_files_are_short_and_packages_shallow_and_without_drawers() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert not {path: count for path, count in lines.items() if count > LONGEST_FILE}
    assert not [name for name in NAMES if len(PurePosixPath(name).parts) - 1 > DEEPEST]
    drawers = {"utils", "util", "common", "misc", "core", "helpers"}
    assert not [path for path in FILES if path.stem in drawers]
    public = {SOURCE, SOURCE / CHECKS, SOURCE / "formats"}
    files = (path for path in FILES if path.name == "__init__.py" and path.parent not in public)
    assert not [path for path in files if path.read_text()]


def test_functions_are_short_and_have_few_parameters() -> None:
    """Commands aside: Typer reads their options from their parameters."""
    broken: list[tuple[str, str]] = []
    for name, function in ((path, node) for path in NAMES for node in _functions(path)):
        length = (function.end_lineno or 0) - function.lineno + 1
        args = function.args
        names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        count = 0 if _room(name) == "cli" else len([n for n in names if n not in ("self", "cls")])
        if length > LONGEST_FUNCTION or count > MOST_PARAMETERS:
            broken.append((name, f"{function.name}, {length} lines, {count} parameters"))
    assert _lines(broken) == []


def test_every_requirement_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {k: v for k, v in project["optional-dependencies"].items() if k != "dev"}
    lines = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    required = {line.strip().partition("[")[0] for line in lines}
    required = {re.split(r"[<>=!~ ]", line)[0].replace("_", "-").lower() for line in required}
    imported = {
        module.partition(".")[0]
        for name in NAMES
        for module in (*_imports(name, nested=True), *_texts(name))
    }
    brought = {
        distribution.replace("_", "-").lower()
        for module, distributions in packages_distributions().items()
        if module in imported
        for distribution in distributions
    }
    # The library that pyvips binds, and a package with an environment of its own.
    assert required <= brought | {"vlatool", "pyvips-binary", "lerobot"}


@cache
def _measured() -> Counter[str]:
    """Tokens, code lines and dense expressions of the package; no docstrings, no comments.

    `tokens ROOM` are the tokens of a room.
    """
    count: Counter[str] = Counter()
    for name in NAMES:
        room = _room(name) if "/" in name else ""
        text = (SOURCE / name).read_text()
        documented: set[int] = set()
        for node in _nodes(name):
            if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
                documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
            count["comprehensions"] += isinstance(node, COMPREHENSIONS)
            count["conditionals"] += isinstance(node, ast.IfExp)
        code: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in NO_CODE and token.start[0] not in documented:
                count["tokens"] += 1
                count[f"tokens {room}"] += 1
                code.add(token.start[0])
        count["lines"] += len(code)
    return count


def test_code_gets_no_larger_and_no_denser() -> None:
    count = _measured()
    thousands = count["tokens"] / 1000
    assert count["tokens"] <= MOST_TOKENS
    assert count["tokens"] / count["lines"] <= MOST_TOKENS_PER_LINE
    assert count["comprehensions"] / thousands <= MOST_COMPREHENSIONS
    assert count["conditionals"] / thousands <= MOST_CONDITIONALS


@pytest.mark.parametrize("room", ROOM_TOKENS)
def test_a_room_gets_no_larger(room: str) -> None:
    assert _measured()[f"tokens {room}"] <= 1000 * ROOM_TOKENS[room] + 50


def test_a_public_class_name_occurs_once() -> None:
    names = [
        node.name
        for name in NAMES
        for node in _tree(name).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


FOLLOWED = re.compile(r"^    ([\w/]+\.py)?\s+([\w.]+)(?: .*)?$")


def followed_commands() -> dict[str, list[tuple[str, str]]]:
    """Command to (file, function) of its way, from docs/reference/architecture.md."""
    page = (ROOT / "docs/reference/architecture.md").read_text()
    section = page.partition("## Follow a command")[2].partition("\n## ")[0]
    ways: dict[str, list[tuple[str, str]]] = {}
    file = command = ""
    for line in section.splitlines():
        if line.startswith("    vlatool "):
            command = line.split()[1]
            ways[command] = []
        elif row := FOLLOWED.match(line):
            file = row[1] or file
            ways[command].append((file, row[2]))
    return ways


@pytest.mark.parametrize("command", ["train", "download", "serve"])
def test_a_command_is_followed_through_few_functions_that_exist(command: str) -> None:
    way = followed_commands()[command]
    assert 10 <= len(way) <= 14
    assert len({file for file, _ in way}) <= 9
    for file, name in way:
        tree = ast.parse((SOURCE / file).read_text())
        for part in name.split("."):
            found = [node for node in tree.body if getattr(node, "name", "") == part]
            assert found, f"{file} has no {name}"
            tree = found[0]
