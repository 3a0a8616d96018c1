"""Error codes, exit codes and public names, read from the source code."""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path

import vlatool
from vlatool.cli.commands import COMMANDS
from vlatool.config.schema import dotted_keys
from vlatool.inspection import code_rows
from vlatool.training.config import TrainConfig

SOURCE = Path(vlatool.__file__).parent
FINDINGS_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "findings.md"
_TABLE_HEAD = "| Code | Severity | Meaning | What to do |\n|---|---|---|---|\n"
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


def findings_page() -> str:
    """docs/reference/findings.md: its introduction, and a table for each group of finding codes."""
    introduction = FINDINGS_PAGE.read_text().partition("\n## ")[0]
    groups = groupby(code_rows(), lambda row: row["code"].partition(".")[0])
    tables = (f"\n## `{name}`\n\n{_TABLE_HEAD}{_table_rows(rows)}" for name, rows in groups)
    return introduction + "".join(tables)


def _table_rows(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(
        f"| `{row['code']}` | {row['severity']} | {row['meaning']} | {row['action']} |\n"
        for row in rows
    )


def _lines(rows: set[str] | list[str]) -> str:
    return "".join(f"{row}\n" for row in sorted(rows))


def _error_codes(trees: Sequence[ast.Module]) -> Iterator[str]:
    """Strings that look like a code and are not a configuration key."""
    names = [info.key for info in dotted_keys(TrainConfig)]
    keys = [
        f"{name}." for name in chain(names, *(row.options.split() for row in COMMANDS.values()))
    ]
    for tree in trees:
        for text in _texts(ast.walk(tree)):
            if _CODE.fullmatch(text) and not any(key.startswith(f"{text}.") for key in keys):
                yield text


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
        for statement in node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
                statement.value, ast.Constant
            ):
                target = (
                    statement.target
                    if isinstance(statement, ast.AnnAssign)
                    else statement.targets[0]
                )
                values[ast.unparse(target)] = statement.value.value
        if {"exit_code", "kind"} <= values.keys():
            yield f"{values['exit_code']} {values['kind']} {node.name}"


def _warning_codes(trees: Sequence[ast.Module]) -> Iterator[str]:
    """First argument of `warn`; findings of readers and sinks have their own codes."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn":
            yield from _texts(node.args[:1])
