"""Help and configuration keys of every command."""

from collections.abc import Iterator

from tests.surface.invoke import plain_terminal, run_vlatool
from vlatool.cli.commands import COMMANDS, GROUPS
from vlatool.plugins import FORMATS


def recorded() -> dict[str, str]:
    """File name to text: one file per command, and the schema of the training configuration."""
    with plain_terminal():
        files = {f"{'-'.join(words)}.txt": _transcript(words) for words in _commands()}
        files["vlatool.txt"] = _answer(["--help"])
        files["resolve-config-schema.json"] = run_vlatool("resolve-config", "--schema")[1]
    return files


def _commands() -> Iterator[tuple[str, ...]]:
    """Words of every command and subcommand."""
    yield from (tuple(words.split()) for words in GROUPS)
    yield from (tuple(words.split()) for words in COMMANDS)


def _transcript(words: tuple[str, ...]) -> str:
    forms = [words]
    if words == ("preprocess",):
        forms += [(*words, name) for name in FORMATS.names()]
    parts: list[str] = []
    for form in forms:
        parts.append(_answer([*form, "--help"]))
        if " ".join(words) in COMMANDS:
            parts.append(_answer([*form, "--help-all"]))
        if "--keys " in parts[-1]:
            parts.append(_answer([*form, "--keys"]))
    if words == ("presets",):
        parts.append(_answer(["presets"]))
    return "\n".join(parts)


def _answer(words: list[str]) -> str:
    code, text = run_vlatool(*words)
    assert code == 0, words
    return f"$ vlatool {' '.join(words)}\n{text.rstrip()}\n"
