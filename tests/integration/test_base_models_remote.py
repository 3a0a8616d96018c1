"""Base models and weights in S3 and on a hub: the same as in a local folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.builders.base_models import clip_base
from tests.builders.s3_runs import upload
from tests.builders.web_server import web_server
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.backbones.clip import ClipBackbone
from vlatool.models.backbones.config import ClipBackboneConfig
from vlatool.models.backbones.text import make_text_tokenizer
from vlatool.models.diffusion_policy.weights import load_section, write_published
from vlatool.storage.remote_path import RemotePath

DATA = RoboticsDataConfig(camera_names=["a"], image_indices=[0])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    clip_base(root / "lab/clip")
    return root


@pytest.fixture(params=["s3", "hub"])
def name(
    request: pytest.FixtureRequest,
    site: Path,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[str]:
    """Value of `hf_pretrained`."""
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    if request.param == "s3":
        yield str(upload(site / "lab/clip", RemotePath(f"s3://{s3_bucket}/clip")))
        return
    with web_server(site) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield "lab/clip"


def test_config_tokenizer_and_weights_equal_those_of_a_local_folder(
    name: str, site: Path, tmp_path: Path
) -> None:
    local = ClipBackboneConfig(hf_pretrained=str(site / "lab/clip")).derive(DATA)[0]
    remote = ClipBackboneConfig(hf_pretrained=name).derive(DATA)[0]
    location = {"hf_pretrained": local.hf_pretrained, "revision": None}
    assert remote.model_copy(update=location) == local
    remote.save_assets(tmp_path)
    sentences = make_text_tokenizer(remote, None, tmp_path)(["put the block"])
    assert torch.equal(sentences, make_text_tokenizer(local, None, None)(["put the block"]))
    networks = [ClipBackbone(config) for config in (local, remote)]
    for network in networks:
        network.load_base()
    values, other = (network.state_dict() for network in networks)
    assert all(torch.equal(value, other[key]) for key, value in values.items())


def test_published_weights_are_written_to_a_bucket_and_read_back(
    site: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    section = ClipBackboneConfig(hf_pretrained=str(site / "lab/clip")).derive(DATA)[0]
    source, target = ClipBackbone(section), ClipBackbone(section)
    path = RemotePath(f"s3://{s3_bucket}/run/checkpoint_3.pt")
    write_published(path, source.state_dict(), number=3, step=1)
    load_section(target, "vision_language_backbone", str(path))
    values, other = source.state_dict(), target.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in values.items())
