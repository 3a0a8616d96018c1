"""Help and configuration keys of every command.

Forms of a command that share most of their options are recorded as their differences.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.surface.invoke import plain_terminal, run_vlatool
from vlatool.cli.commands import COMMANDS, GROUPS
from vlatool.plugins import FORMATS

# Command to the one with most of its options.
SIMILAR = {
    "finetune": "train",
    "tokenizer train": "train",
    "resolve-config": "train",
    "launch slurm train": "train",
    "launch sagemaker train": "train",
    "launch sagemaker finetune": "train",
}


def recorded() -> dict[str, str]:
    """File name to text: one file per command, and the schema of the training configuration."""
    with plain_terminal():
        answers = {" ".join(words): _answers(words) for words in _commands()}
        files: dict[str, str] = {}
        for name, texts in answers.items():
            if name in SIMILAR:
                texts = _differences(answers[SIMILAR[name]], texts)
            files[f"{name.replace(' ', '-')}.txt"] = "\n".join(texts.values())
        files["preprocess-formats.txt"] = _formats(answers["preprocess"])
        files["presets.txt"] += "\n" + _answer(["presets"])
        files["vlatool.txt"] = _answer(["--help"])
        schema = json.loads(run_vlatool("resolve-config", "--schema")[1])
        files["resolve-config-schema.txt"] = "".join(_schema_rows("", schema))
    return files


def _formats(base: Mapping[str, str]) -> str:
    """What the forms of `preprocess` with a format say differently from that without one."""
    texts: list[str] = []
    for name in FORMATS.names():
        texts += _differences(base, _answers(("preprocess", name))).values()
    return "\n".join(texts)


def _differences(base: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, str]:
    """Lines that are removed from the texts of another command, and those that are added."""
    differences: dict[str, str] = {}
    for option, text in texts.items():
        before = base.get(option, "").splitlines()[1:]
        first, *lines = text.splitlines()
        changes = list(difflib.unified_diff(before, lines, n=0, lineterm=""))[2:]
        changes = [line for line in changes if not line.startswith("@@")]
        differences[option] = "\n".join([first, *changes]) + "\n"
    return differences


def _schema_rows(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """A line for each definition and each of its properties."""
    properties: dict[str, Any] = schema.get("properties", {})
    definitions: dict[str, Any] = schema.get("$defs", {})
    rest = {key: value for key, value in schema.items() if key not in ("properties", "$defs")}
    yield f"{name or 'root'} {json.dumps(rest)}\n"
    for key, value in properties.items():
        yield f"{name}.{key} {json.dumps(value)}\n"
    for key, value in definitions.items():
        yield from _schema_rows(key, value)


def _commands() -> Iterator[tuple[str, ...]]:
    """Words of every command and subcommand."""
    yield from (tuple(words.split()) for words in GROUPS)
    yield from (tuple(words.split()) for words in COMMANDS)


def _answers(words: tuple[str, ...]) -> dict[str, str]:
    """Option that describes a command, to what the command prints with it."""
    answers = {"--help": _answer([*words, "--help"])}
    if words[0] == "preprocess" or " ".join(words) in COMMANDS:
        answers["--help-all"] = _answer([*words, "--help-all"])
    if any("--keys " in text for text in answers.values()):
        answers["--keys"] = _answer([*words, "--keys"])
    return answers


def _answer(words: list[str]) -> str:
    code, text = run_vlatool(*words)
    assert code == 0, words
    return f"$ vlatool {' '.join(words)}\n{text.rstrip()}\n"
