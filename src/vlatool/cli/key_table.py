"""What `--keys` prints: the configuration keys of a command."""

from collections.abc import Iterator
from typing import Any

from vlatool.cli.output import to_json
from vlatool.config.base import ConfigModel
from vlatool.config.schema import dotted_keys


class KeyTable:
    """Keys with type, default and description."""

    def __init__(self, schema: type[ConfigModel]) -> None:
        self._schema = schema

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per key."""
        for info in dotted_keys(self._schema):
            yield {
                "key": info.key,
                "type": info.type_text,
                "default": info.default,
                "description": info.description,
            }

    def document(self) -> dict[str, Any]:
        """All keys."""
        return {"keys": list(self.rows())}

    def text(self) -> str:
        """One key per line, its description below."""
        lines: list[str] = []
        for row in self.rows():
            lines.append(f"{row['key']}: {row['type']} = {to_json(row['default'], indent=None)}")
            if row["description"]:
                lines.append(f"    {row['description']}")
        return "\n".join(lines)
