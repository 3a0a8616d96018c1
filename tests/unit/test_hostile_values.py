"""Hostile values in files: each reader takes them, or refuses them by name.

Nothing ends in another error, takes more than a GiB or longer than a few seconds.
"""

import contextlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from tests.builders.hostile import (
    OBJECT,
    changed_trees,
    json_bytes,
    limited_memory,
    pickles,
    tars,
    yaml_texts,
)
from tests.builders.shards import shard_output
from tests.builders.tokenizers import tiny_titok
from tests.builders.toy_images import write_image_shards
from tests.builders.verifying import verified
from vlatool.cli.failures import as_vlatool_error
from vlatool.errors import DataError
from vlatool.jobs.executor import attempt
from vlatool.media.lines import lines_index_path
from vlatool.media.tar import ShardIndex, index_by_headers, member_bytes
from vlatool.media.tar_sample import read_members
from vlatool.models.titok.model import Titok
from vlatool.models.titok.published import CONFIG, WEIGHTS, published_tree
from vlatool.models.titok.weights import save_published
from vlatool.models.trained import open_trained
from vlatool.report.text import number_text
from vlatool.storage.atomic import write_text
from vlatool.storage.tree import walk
from vlatool.workflows.build_dataset import BuildDatasetConfig
from vlatool.workflows.verify import InspectConfig, VerifyConfig, VerifyResult, inspect, verify

SEED = 22
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _memory_limit() -> Iterator[None]:
    with limited_memory():
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    config = tiny_titok()
    save_published(folder, config, Titok(config))
    return folder


def refusal(read: Callable[[], Any]) -> DataError | None:
    """The error of a read; None on success. No text holds a representation of an object."""
    caught = None
    texts: list[str] = []
    try:
        result = read()
        if isinstance(result, VerifyResult):
            texts = [finding.message for finding in result.findings]
    except DataError as error:
        caught = error
        texts = [error.message, error.hint]
    assert not [text for text in texts if OBJECT.search(text)]
    return caught


CONFIGS = {
    **dict(changed_trees(published_tree(tiny_titok()), SEED, 40)),
    **yaml_texts(SEED),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_of_a_tokenizer_is_read_or_refused(name: str, tokenizer: Path) -> None:
    content = CONFIGS[name]
    text = content if isinstance(content, bytes) else yaml.safe_dump(content).encode()
    (tokenizer / CONFIG).write_bytes(text)

    refusal(lambda: open_trained(str(tokenizer), device="cpu"))


SIZES = [
    *(f"model.vq_model.vit_enc_model_size.{key}" for key in ("hidden_dim", "n_layers")),
    *(f"model.vq_model.vit_dec_model_size.{key}" for key in ("hidden_dim", "n_layers")),
    *(f"model.vq_model.{key}" for key in ("token_size", "codebook_size", "num_latent_tokens")),
    *("model.vq_model.vqgan.codebook_size", "dataset.preprocessing.crop_size"),
]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("size", [256, 2**14, 2**40])
def test_size_that_the_weights_do_not_have_is_refused_before_it_takes_memory(
    key: str, size: int, tokenizer: Path
) -> None:
    tree = published_tree(tiny_titok())
    section = tree
    *parents, last = key.split(".")
    for name in parents:
        section = section[name]
    section[last] = size
    (tokenizer / CONFIG).write_text(yaml.safe_dump(tree))

    error = refusal(lambda: open_trained(str(tokenizer), device="cpu"))

    assert error is not None
    assert error.code in ("data.checkpoint_mismatch", "data.broken")


def test_tensors_that_repeat_a_few_values_are_refused(tokenizer: Path) -> None:
    config = tiny_titok(encoder={"hidden_dim": 4096, "n_layers": 24, "n_heads": 64})
    with torch.device("meta"):
        shapes = Titok(config).state_dict()
    views = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    torch.save(views, tokenizer / WEIGHTS)
    (tokenizer / CONFIG).write_text(yaml.safe_dump(published_tree(config)))

    error = refusal(lambda: open_trained(str(tokenizer), device="cpu"))

    assert error is not None
    assert error.code == "data.broken"


PICKLES = dict(pickles(SEED, list(Titok(tiny_titok()).state_dict())))


@pytest.mark.parametrize("name", PICKLES)
def test_pickle_is_read_or_refused(name: str, tokenizer: Path) -> None:
    (tokenizer / CONFIG).write_text(yaml.safe_dump(published_tree(tiny_titok())))
    (tokenizer / WEIGHTS).write_bytes(PICKLES[name])

    assert refusal(lambda: open_trained(str(tokenizer), device="cpu")) is not None


MEMBERS = [member_bytes(f"{key}.json", b"{}") for key in ("one", "two")]
TARS = dict(tars(SEED, MEMBERS))


@pytest.mark.parametrize("name", TARS)
def test_tar_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(TARS[name])

    refusal(lambda: index_by_headers(path))
    verified(path)
    with contextlib.suppress(ValueError):
        read_members(TARS[name])


def _fast(folder: Path) -> tuple[Path, Path]:
    plain_fast(folder)
    return folder, folder / "processor_config.json"


def _windows(folder: Path) -> tuple[Path, Path]:
    published_windows(folder)
    path = sorted((folder / "data").glob("*.jsonl"))[0]
    return folder, path


def _codes(folder: Path) -> tuple[Path, Path]:
    published_windows(folder)
    write_tree_codes(folder)
    return folder / "TiToken", folder / "TiToken" / "manifest.json"


def _shards(folder: Path) -> tuple[Path, Path]:
    shard_output(folder)
    return folder, folder / "shards" / "manifest.jsonl"


FOLDERS = {
    "fast": _fast,
    "windows": _windows,
    "codes": _codes,
    "shards": _shards,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_manifest_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    folder, path = FOLDERS[kind](tmp_path / "folder")
    first, *others = path.read_bytes().splitlines(keepends=True)
    is_lines = path.suffix == ".jsonl"
    tree = json.loads(first if is_lines else path.read_bytes())
    rest = b"\n" + b"".join(others) if is_lines else b""
    contents = [json_bytes(changed) + rest for _, changed in changed_trees(tree, SEED, 30)]

    for content in (*contents, b"", b"[]", b"null", b"1", b'"a"', b"[[]]", b"{}"):
        path.write_bytes(content)
        refusal(lambda: verify(VerifyConfig(location=str(folder), quick=True)))
        refusal(lambda: inspect(InspectConfig(location=str(folder))))


@pytest.mark.parametrize("kind", FOLDERS)
def test_pipe_in_the_place_of_a_manifest_does_not_block(kind: str, tmp_path: Path) -> None:
    folder, path = FOLDERS[kind](tmp_path / "folder")
    path.unlink()
    os.mkfifo(path)

    refusal(lambda: verify(VerifyConfig(location=str(folder))))
    refusal(lambda: inspect(InspectConfig(location=str(folder))))


@pytest.mark.parametrize("name", ["x", "data/x.jsonl", "images/x", "data/episode_9.jsonl"])
def test_pipe_beside_windows_is_found(name: str, tmp_path: Path) -> None:
    folder, _ = _windows(tmp_path / "folder")
    os.mkfifo(folder / name)

    result = verified(folder)

    assert (result.kind, result.codes.get("output.not_a_file")) == ("windows", 1)


@pytest.mark.parametrize("size", [2**27, 2**28, 2**30 - 2**20, 2**34])
@pytest.mark.parametrize("write", [write_image_shards, shard_output])
def test_member_of_zeros_takes_no_memory(
    write: Callable[[Path], Path], size: int, tmp_path: Path
) -> None:
    write(tmp_path)
    path = sorted(tmp_path.rglob("*.tar"))[0]
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    last.size = size
    with path.open("r+b") as file:
        file.seek(last.offset)
        file.write(last.tobuf())
        file.truncate(last.offset_data + size + 10 * 2**10)

    assert set(verified(path).codes) & {
        "shards.huge_sample",
        "shards.bad_language",
        "shards.broken_picture",
        "image_shards.broken_picture",
    }


@pytest.mark.parametrize("value", [{"a": 1}, [], "1", 10**400, None, True, float("nan")], ids=str)
def test_number_of_a_damaged_file_is_shown(value: object) -> None:
    assert number_text(value)


@pytest.mark.parametrize("damage", ["empty", "missing"])
def test_lines_that_do_not_match_their_index_are_found(damage: str, tmp_path: Path) -> None:
    folder, path = _windows(tmp_path / "folder")
    lines_index_path(path).write_bytes(ShardIndex(np.array([0]), np.array([1]), 9).content())
    if damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()

    assert "windows.index_mismatch" in verified(folder).codes


def test_link_to_a_folder_above_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "inner" / "link").symlink_to("/")

    assert [path.name for path, _, _ in walk(tmp_path / "root")] == ["root", "inner"]


@pytest.mark.parametrize("pattern", ["/etc/*", "", "..", "data/../../*", "**/**/x", "a**"])
def test_pattern_of_windows_stays_in_the_folder(pattern: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        BuildDatasetConfig(pattern=pattern)


def test_name_that_is_not_utf8_is_a_data_error_of_command_and_item(
    tmp_path: Path,
) -> None:
    def write(name: str) -> None:
        write_text(tmp_path / "record", name)

    name = os.fsdecode(b"\xff\xfe")

    outcome = attempt(write, name)
    with pytest.raises(UnicodeEncodeError) as caught:
        write(name)

    assert outcome.error is not None
    assert outcome.error.code == as_vlatool_error(caught.value).code == "data.bad_name"
