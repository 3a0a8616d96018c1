"""Codes, exit codes and public names, read from the source without running it."""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import vlatool
from vlatool.config.schema import dotted_keys
from vlatool.training.config import TrainConfig
from vlatool.verification.findings import code_rows

SOURCE = Path(vlatool.__file__).parent
_CODE = re.compile(r"(usage|config|data|partial|storage|environment)\.[a-z0-9_]*[a-z0-9]")


def recorded() -> dict[str, str]:
    """File name to text."""
    trees = [ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))]
    findings = [f"{row['severity']:8}{row['code']}" for row in code_rows()]
    return {
        "error-codes.txt": _lines(set(_error_codes(trees))),
        "exit-codes.txt": _lines(set(_exit_codes(trees))),
        "warning-codes.txt": _lines(set(_warning_codes(trees))),
        "finding-codes.txt": _lines(findings),
        "public-names.json": json.dumps(dir(vlatool), indent=1) + "\n",
    }


def _lines(rows: set[str] | list[str]) -> str:
    return "".join(f"{row}\n" for row in sorted(rows))


def _error_codes(trees: Sequence[ast.Module]) -> Iterator[str]:
    """Texts that look like a code and are no configuration key, and codes put together."""
    keys = [f"{info.key}." for info in dotted_keys(TrainConfig)]
    for tree in trees:
        for text in _texts(ast.walk(tree)):
            if _CODE.fullmatch(text) and not any(key.startswith(f"{text}.") for key in keys):
                yield text
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            yield from _put_together(function, tree)


def _put_together(function: ast.FunctionDef, tree: ast.Module) -> Iterator[str]:
    """`data.*` of `code=f"data.{code}"`, filled in where calls in this file give the part."""
    for node in ast.walk(function):
        if not isinstance(node, ast.keyword) or node.arg != "code":
            continue
        if not isinstance(node.value, ast.JoinedStr):
            continue
        parts = [getattr(part, "value", None) for part in node.value.values]
        pattern = "".join(part if isinstance(part, str) else "*" for part in parts)
        names = [one.arg for one in function.args.args if one.arg != "self"]
        given = _given(tree, function.name, names.index("code")) if "code" in names else ()
        yield from [pattern.replace("*", text) for text in given] or [pattern]


def _given(tree: ast.Module, function: str, place: int) -> Iterator[str]:
    """Texts that calls of a function give at a place, or by the name `code`."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).rpartition(".")[2] == function:
            named = [one.value for one in call.keywords if one.arg == "code"]
            yield from _texts([*named, *call.args[place : place + 1]])


def _texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _exit_codes(trees: Sequence[ast.Module]) -> Iterator[str]:
    """`3 data DataError` for every class that sets an exit code."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if not isinstance(node, ast.ClassDef):
            continue
        values: dict[str, object] = {}
        for one in node.body:
            if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(one.value, ast.Constant):
                target = one.target if isinstance(one, ast.AnnAssign) else one.targets[0]
                values[ast.unparse(target)] = one.value.value
        if {"exit_code", "kind"} <= values.keys():
            yield f"{values['exit_code']} {values['kind']} {node.name}"


def _warning_codes(trees: Sequence[ast.Module]) -> Iterator[str]:
    """First argument of `warn`; what readers and sinks find has the codes of findings."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn":
            yield from _texts(node.args[:1])
