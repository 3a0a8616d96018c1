"""Models in the layouts of published programs. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PublishedFiles:
    """Files of a model in its published layout, of any scheme.

    Attributes:
        weights: File with the weights.
        config: File with the configuration; None for a file of weights alone.
    """

    weights: Path
    config: Path | None = None


@dataclass(frozen=True)
class PublishedModel:
    """Content of `PublishedFiles`.

    Attributes:
        config: Section `model`.
        parts: Networks with their weights on the CPU, by name.
        assets: Assets of the data kind.
    """

    config: Any
    parts: "Mapping[str, nn.Module]"
    assets: Any


@dataclass(frozen=True)
class Exported:
    """Published layout of opened weights, ready to be written.

    Attributes:
        files: Names of the files that `write` may write.
        weights: Names of those that hold weights.
        parameters: Number of values in the file of weights.
        summary: Text on the files.
        write: Writes the files to a folder; returns further facts for the result, as JSON values.
    """

    files: tuple[str, ...]
    weights: tuple[str, ...]
    parameters: int
    summary: str
    write: Callable[[Path], Mapping[str, Any]]
