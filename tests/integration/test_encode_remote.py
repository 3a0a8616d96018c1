"""Images, tokenizers, codes and decoded images in object storage and on a web server."""

from pathlib import Path

import pytest

from tests.builders.encoding import encoded, image_tree, write_tokenizer
from tests.builders.s3_runs import digests, upload
from tests.builders.web_server import web_server
from vlatool.artifacts.codes.format import CodesLayout
from vlatool.storage.remote_path import RemotePath
from vlatool.tokens.config import DecodeConfig
from vlatool.workflows.encode import decode


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_tree(tmp_path_factory.mktemp("images") / "A", episodes=2)


@pytest.mark.parametrize(("layout", "name"), [("json", "TiToken"), ("packed", "tokens")])
def test_object_storage_has_the_same_files_as_local_folders(
    layout: CodesLayout, name: str, tree: Path, tokenizer: str, s3_bucket: str, tmp_path: Path
) -> None:
    bucket = RemotePath(f"s3://{s3_bucket}")
    remote_tree, remote = upload(tree, bucket / "A"), upload(Path(tokenizer), bucket / "tiny")

    encoded(remote_tree, str(remote), layout=layout)
    _decode(remote_tree / name, str(remote), bucket / "decoded")

    encoded(tree, tokenizer, tmp_path / "codes", layout=layout)
    _decode(tmp_path / "codes", tokenizer, tmp_path / "decoded")
    assert digests(remote_tree / name) == digests(tmp_path / "codes")
    assert digests(bucket / "decoded") == digests(tmp_path / "decoded")


def test_tokenizer_of_a_web_server_makes_the_same_codes(
    tree: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    encoded(tree, tokenizer, tmp_path / "one")
    with web_server(Path(tokenizer).parent) as server:
        encoded(tree, f"{server.endpoint}/tiny", tmp_path / "two")
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def _decode(codes: Path, tokenizer: str, output: Path) -> None:
    decode(DecodeConfig(codes=str(codes), tokenizer=tokenizer, output=str(output)))
