"""Separation of configuration keys from argv, before Typer parses the rest.

Typer cannot accept keys that a schema declares at run time. If it ignored unknown options, it would
take a misspelt option for a value.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlatool.errors import UsageError

_NEGATIVE = re.compile(r"-(\.?\d|inf|nan|$)", re.IGNORECASE)
_CONFIG = "--config"
_BARE_KEY = re.compile(r"([A-Za-z_]\w*(?:\.[\w-]+)*)=(.*)", re.DOTALL)
_BOOL_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})


@dataclass(frozen=True)
class TypedValue:
    """Configuration value as typed."""

    key: str  # dotted key (also of `--set`), or the name of a flat key or short form
    text: str
    option: str  # the option as typed, for messages
    is_flat: bool = False  # the key is an entry of `ArgvSpec.keys`


@dataclass(frozen=True)
class ArgvSpec:
    """Options and keys of one command line."""

    # Options that Typer parses, as typed; True if an option takes a value.
    options: Mapping[str, bool]
    # Names (with underscores) of configuration keys; True for a switch.
    keys: Mapping[str, bool] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)  # short forms of keys: `-o` for `output`
    # Published names (with underscores) of options and keys; `KEY=VALUE` for a switch.
    aliases: Mapping[str, str] = field(default_factory=dict)
    # `a.b=c` without dashes sets a key, and `config=FILE` is `--config FILE`.
    has_bare_keys: bool = False

    def spellings(self) -> list[str]:
        """Every long option that can be typed."""
        names = [name for name in self.options if name.startswith("--")]
        return [*names, *(f"--{key.replace('_', '-')}" for key in self.keys)]


@dataclass
class SplitArgv:
    """Configuration values of a command line, and the arguments left for Typer."""

    rest: list[str] = field(default_factory=list)
    typed: list[TypedValue] = field(default_factory=list)


def split_argv(argv: Sequence[str], spec: ArgvSpec, *, lenient: bool = False) -> SplitArgv:
    """Separates configuration values from everything else, in the order typed."""
    walker = _ArgvWalker(list(argv), spec, lenient)
    walker.walk()
    return walker.result


class _ArgvWalker:
    def __init__(self, argv: list[str], grammar: ArgvSpec, lenient: bool) -> None:
        self.argv = argv
        self.spec = grammar
        self.lenient = lenient
        self.position = 0
        self.result = SplitArgv()

    def walk(self) -> None:
        while self.position < len(self.argv):
            word = self.argv[self.position]
            self.position += 1
            if word == "--":
                self.result.rest += [word, *self.argv[self.position :]]
                return
            if word.startswith("--"):
                self._long(word)
            elif is_option(word):
                self._short(word)
            elif self.spec.has_bare_keys and (match := _BARE_KEY.fullmatch(word)):
                self._word(*match.groups())
            else:
                self.result.rest.append(word)

    def _word(self, key: str, text: str) -> None:
        if f"--{key}" == _CONFIG:
            self.result.rest += [_CONFIG, text]
        else:
            self.result.typed.append(TypedValue(key, text, f"{key}="))

    def _long(self, word: str) -> None:
        option, equals, text = word.partition("=")
        value = text if equals else None
        name = option[2:].replace("-", "_")
        name, is_fixed, fixed = self.spec.aliases.get(name, name).partition("=")
        if is_fixed:
            self.result.typed.append(TypedValue(name, fixed, option, is_flat=True))
        elif name == "set":
            self._set(option, value)
        elif "." in name:
            self._key(name, option, value, is_flat=name in self.spec.keys)
        elif name in self.spec.keys:
            self._key(name, option, value, is_flat=True)
        elif name.startswith("no_") and self.spec.keys.get(name[3:]) and not equals:
            self.result.typed.append(TypedValue(name[3:], "false", option, is_flat=True))
        else:
            self._pass_on("--" + name.replace("_", "-"), option, value)

    def _short(self, word: str) -> None:
        short, value = word[:2], word[2:].removeprefix("=")
        if short in self.spec.short:
            self._key(self.spec.short[short], short, value or None, is_flat=True)
        elif short in self.spec.options:
            self._pass_on(short, short, value or None)
        else:
            self._unknown(word, value or None)

    def _set(self, option: str, value: str | None) -> None:
        text = self._value(option, value)
        if text is None:
            return
        key, equals, right = text.partition("=")
        if not equals and not self.lenient:
            raise UsageError(
                f"--set {text!r} has no '='",
                hint="write --set key=value",
                code="usage.malformed_override",
                details={"option": "--set", "value": text},
            )
        self.result.typed.append(TypedValue(key.strip(), right, f"--set {key}"))

    def _key(self, key: str, option: str, value: str | None, *, is_flat: bool) -> None:
        is_switch = is_flat and self.spec.keys[key]
        text = self._switch(value) if is_switch else self._value(option, value)
        if text is not None:
            self.result.typed.append(TypedValue(key, text, option, is_flat))

    def _switch(self, value: str | None) -> str:
        if value is not None:
            return value
        if self.position < len(self.argv) and self.argv[self.position].lower() in _BOOL_WORDS:
            self.position += 1
            return self.argv[self.position - 1]
        return "true"

    def _value(self, option: str, value: str | None) -> str | None:
        if value is not None:
            return value
        if self.position < len(self.argv) and not is_option(self.argv[self.position]):
            self.position += 1
            return self.argv[self.position - 1]
        if self.lenient:
            return None
        raise UsageError(
            f"option {option} needs a value",
            hint=f"write {option} VALUE, or {option}=VALUE for a value that starts with a dash",
            code="usage.missing_value",
            details={"option": option},
        )

    def _pass_on(self, name: str, option: str, value: str | None) -> None:
        if name not in self.spec.options:
            self._unknown(option, value)
        elif self.spec.options[name]:
            value = self._value(option, value)
            self.result.rest += [name] if value is None else [name, value]
        elif value is None or value.lower() in ("true", "yes", "on", "1"):
            self.result.rest.append(name)
        elif not self.lenient and value.lower() not in _BOOL_WORDS:
            raise UsageError(
                f"option {option} is a switch and takes no value (got {value!r})",
                hint=f"write {option}",
                code="usage.unexpected_value",
                details={"option": option},
            )

    def _unknown(self, option: str, value: str | None) -> None:
        if not self.lenient:
            raise UnknownOptionError(option)
        self._value(option, value)


class UnknownOptionError(UsageError):
    """Unknown option. The command adds the nearest names as the hint."""

    def __init__(self, option: str) -> None:
        super().__init__(
            f"unknown option {option}", code="usage.unknown_option", details={"option": option}
        )
        self.option = option


def is_option(word: str) -> bool:
    """True if a word is an option; `-1e-4` and `-` are values."""
    return word.startswith("-") and word != "-" and not _NEGATIVE.match(word)
