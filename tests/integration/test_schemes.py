"""The same commands on every scheme; the results are those of local folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.memory_remote import Memory
from tests.builders.preprocessing import contents
from tests.builders.training import tiny_config, world_shards
from vlatool.plugins import SCHEMES
from vlatool.storage.atomic import write_bytes
from vlatool.storage.uri import location
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.train import train
from vlatool.workflows.verify import VerifyConfig, verify


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` and the `data` that is made of it."""
    return world_shards(tmp_path_factory.mktemp("world")).parent


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A scheme that nobody but this test knows."""
    builtins = SCHEMES._builtins  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setitem(builtins, "memory", Memory)
    yield "memory://test"
    Memory.places.clear()


def uploaded(folder: Path, target: str) -> str:
    """A copy of a local folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            write_bytes(location(f"{target}/{name}"), path.read_bytes())
    return target


def test_scheme_of_sixty_lines_is_preprocessed_verified_and_trained_on(
    memory: str, world: Path, tmp_path: Path
) -> None:
    raw = uploaded(world / "raw", f"{memory}/raw")
    tree = {
        "format": "spartan",
        "sources": [raw],
        "output": f"{memory}/out",
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 6,
        "max_padding_right": 6,
        "camera_names": ["scene_right_0", "wrist_right_minus"],
        "samples_per_shard": 16,
        "workers": 1,
    }
    preprocess(PreprocessConfig.specialise(tree).model_validate(tree))

    made = {key: data for key, (data, _) in Memory.places[memory].items()}
    for name, data in contents(world / "data").items():
        assert made[f"out/{name}"] == data, name
    assert verify(VerifyConfig(location=f"{memory}/out")).severities["error"] == 0
    manifest = {"data__dataset_manifest": f"{memory}/out/shards/manifest.jsonl"}
    losses = [
        train(tiny_config(world / "data", tmp_path / name, total_train_steps=2, **keys)).loss
        for name, keys in (("here", {}), ("there", manifest))
    ]
    assert losses[0] == losses[1]
