"""Runs of `preprocess` on small data, and access to their outputs."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.spartan import CAMERAS, Documents, session_folder
from vlatool.config.resolve import config_of
from vlatool.datasets.lbm.layout import read_manifest
from vlatool.errors import VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

FRAMES = 6
CAMERA = next(iter(CAMERAS))


def options_for(source: Path, output: Path, /, **options: Any) -> dict[str, Any]:
    """Options of a small run: windows of 1 + 1 + 3 steps, 8 samples per shard."""
    return {
        "format": "spartan",
        "sources": [str(source)],
        "output": str(output),
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 3,
        "max_padding_right": 3,
        "samples_per_shard": 8,
        "workers": 1,
        **options,
    }


def run(
    source: Path, output: Path, /, *, reporter: Reporter = NULL, **options: Any
) -> PreprocessResult:
    """Result of a small run."""
    tree = options_for(source, output, **options)
    return preprocess(config_of(PreprocessConfig, tree), reporter=reporter)


def refusal(source: Path, output: Path, /, **options: Any) -> VlatoolError:
    """Error of a run."""
    with pytest.raises(VlatoolError) as caught:
        run(source, output, **options)
    return caught.value


def contents(output: Path) -> dict[str, bytes]:
    """Content of all files that must not depend on time or interruptions."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
        and ".vlatool" not in path.parts
        and path.name != "processing_metadata.json"
    }


def samples(folder: Path) -> Iterator[dict[str, Any]]:
    """All samples of a manifest, read by the webdataset library."""
    import webdataset as wds

    for shard in read_manifest(folder / "manifest.jsonl"):
        yield from wds.WebDataset(str(shard.location), shardshuffle=False)


def arrays(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Low-dimensional arrays of a sample."""
    with np.load(io.BytesIO(sample["lowdim.npz"]), allow_pickle=False) as archive:
        return dict(archive)


def metadata(sample: dict[str, Any]) -> dict[str, Any]:
    return json.loads(sample["metadata.json"])


def has_message_and_hint(failure: Mapping[str, Any]) -> bool:
    """True if a failure has a message and a hint of one line each."""
    lines = (failure["message"], failure["hint"])
    return all(lines) and not any("\n" in line for line in lines)


def failure_of(error: VlatoolError) -> Mapping[str, Any]:
    """The only failed episode of a partial failure."""
    assert error.exit_code == 4, error
    (failure,) = error.details["failures"]
    return failure


def processed(source: Path, episode: int = 1) -> Path:
    """Folder of the files of an episode."""
    return session_folder(source) / f"episode_{episode}" / "processed"


def value(document: str, key: str, content: Any) -> Callable[[Documents], None]:
    """Change that sets one entry of a document."""

    def change(documents: Documents) -> None:
        documents[document][key] = content

    return change


def without(document: str, key: str | None = None) -> Callable[[Documents], None]:
    """Change that removes a document or one entry of it."""

    def change(documents: Documents) -> None:
        del (documents[document] if key else documents)[key or document]

    return change


def named(name: str) -> Callable[[Documents], None]:
    """Change of the name of the first camera."""
    return value("metadata", "camera_id_to_semantic_name", {**CAMERAS, CAMERA: name})
