"""What every report of a location has in common."""

from collections.abc import Callable
from typing import Any, Protocol

from vlatool.errors import DataError


class Report(Protocol):
    """What was found at one kind of location."""

    @property
    def kind(self) -> str:
        """`source`, `shards`, `shard`, `run`, ...; says which keys to expect."""
        ...

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        ...

    def headline(self) -> str:
        """What it is, in a few words."""
        ...

    def blocks(self) -> list[str]:
        """The report for people, block by block; empty ones are left out."""
        ...


class Problems(list[dict[str, str]]):
    """What is broken or missing, with `code` and `message`."""

    def add(self, error: DataError) -> None:
        """Notes an error."""
        self.append({"code": error.code, "message": error.message})

    def read(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a file says; nothing, and a problem, where it is missing or broken."""
        try:
            return read()
        except DataError as error:
            self.add(error)
            return {}
