"""What was typed for a configuration, as the overrides that the loader takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlatool.cli.keys import Key
from vlatool.cli.lifting import Typed
from vlatool.config.overrides import Override, parse_override
from vlatool.errors import UsageError

Expand = Callable[[list[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class TypedConfig:
    """The configuration part of one command line.

    Attributes:
        typed: Values in the order typed.
        keys: Declared flat keys by option name.
        sugar: Options that stand for other keys, by name.
    """

    typed: Sequence[Typed]
    keys: Mapping[str, Key] = field(default_factory=dict)
    sugar: Mapping[str, Expand] = field(default_factory=dict)

    def overrides(self, positionals: Mapping[str, Any]) -> list[Override]:
        """Every typed value as an override, in order; arguments and sugar come first.

        Raises:
            UsageError: A key is given by its argument or sugar and in another way too.
        """
        given = {name: value for name, value in positionals.items() if value not in (None, [], ())}
        claimed = {name: f"the argument {name.upper()}" for name in given}
        result = [
            Override(name, value, f"command line, argument {name.upper()}")
            for name, value in given.items()
        ]
        for name, texts in self._sugared().items():
            option = "--" + name.replace("_", "-")
            for key, value in self.sugar[name](texts).items():
                _claim(claimed, key, option)
                result.append(Override(key, value, f"command line, {option}"))
        return result + self._plain(claimed)

    def _sugared(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        for typed in self.typed:
            if self._is_sugar(typed):
                texts.setdefault(typed.key, []).append(typed.text)
        return texts

    def _plain(self, claimed: Mapping[str, str]) -> list[Override]:
        result: list[Override] = []
        plain = (typed for typed in self.typed if not self._is_sugar(typed))
        for position, typed in enumerate(plain, start=1):
            path = self.keys[typed.key].path if typed.is_flat else typed.key
            if by := claimed.get(path.replace("-", "_")):
                raise _twice(path, by, typed.option)
            result.append(parse_override(f"{path}={typed.text}", position))
        return result

    def _is_sugar(self, typed: Typed) -> bool:
        return typed.is_flat and typed.key in self.sugar


def _claim(claimed: dict[str, str], key: str, by: str) -> None:
    if key in claimed:
        raise _twice(key, claimed[key], by)
    claimed[key] = by


def _twice(key: str, first: str, second: str) -> UsageError:
    return UsageError(
        f"the key {key!r} is given twice: by {first} and by {second}",
        hint="keep one of them",
        code="usage.given_twice",
        details={"key": key, "by": [first, second]},
    )
