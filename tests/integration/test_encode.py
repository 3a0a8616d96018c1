"""`encode` and `decode`: independent of batches and processes, robust to broken images."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.builders.codes import plain_fast, published_windows
from tests.builders.encoding import (
    EPISODES,
    FRAMES,
    encoded,
    image_name,
    image_tree,
    write_continuous_tokenizer,
    write_tokenizer,
)
from tests.builders.errors import fails
from tests.builders.images import image, image_shards, saved, write
from tests.builders.jobs import contents
from tests.builders.recording import Recorder
from tests.builders.s3_runs import digests, upload
from tests.builders.tokenizers import SIDE
from tests.builders.verifying import verified
from vlatool.datasets.codes.layout import CodesFolder
from vlatool.errors import DataError, PartialFailure, UsageError, VlatoolError
from vlatool.models.images import to_float
from vlatool.models.tokenizer import open_tokenizer
from vlatool.storage.remote_path import RemotePath
from vlatool.tokens.config import DecodeConfig, EncodeConfig
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.encode import DecodeResult, decode
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify

IMAGES = EPISODES * FRAMES * 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_tree(tmp_path_factory.mktemp("images") / "A")


@pytest.fixture(scope="module")
def whole(tree: Path, tokenizer: str) -> Path:
    encoded(tree, tokenizer)
    return tree / "TiToken"


@pytest.fixture
def damaged(tree: Path, tmp_path: Path) -> Path:
    shutil.copytree(tree / "images", tmp_path / "B/images")
    return tmp_path / "B"


def test_codes_are_those_that_the_tokenizer_makes(whole: Path, tree: Path, tokenizer: str) -> None:
    model = open_tokenizer(tokenizer, CPU).trained.parts["model"]
    episode = CodesFolder.open(whole).read("episode_000001")
    for stem, codes in zip(episode.stems, episode.codes, strict=True):
        pixels = np.asarray(Image.open(tree / f"images/episode_000001/{stem}.png"))
        images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        assert codes.tolist() == model.codes(to_float(images))[0].tolist()
    assert list(verify(VerifyConfig(location=str(whole))).findings) == []
    checks = list(whole.glob("checks/*/*.png"))
    assert len(checks) == EPISODES * 3
    # Check images have labels and a size that can be seen.
    with Image.open(checks[0]) as check:
        left = np.asarray(check)[:, : check.width // 2]
    assert left.shape[1] >= 160
    band = left[: left.shape[0] - SIDE * (left.shape[1] // SIDE)]
    assert (band == 255).all(axis=2).any()
    assert (band < 128).any()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"num_workers": 2}])
def test_codes_do_not_depend_on_batches_and_reader_processes(
    whole: Path, tree: Path, tokenizer: str, tmp_path: Path, options: dict[str, int]
) -> None:
    encoded(tree, tokenizer, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(whole)


def test_packed_codes_are_those_of_separate_files_and_decode_to_the_same(
    whole: Path, tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    result = encoded(tree, tokenizer, tmp_path / "packed", layout="packed")
    packed, separate = CodesFolder.open(tmp_path / "packed"), CodesFolder.open(whole)
    assert result.pictures == IMAGES
    assert packed.manifest.digest == separate.manifest.digest
    assert (tmp_path / "packed/episode_000000.npz").is_file()
    _decoded(whole, tokenizer, tmp_path / "out")
    again = _decoded(tmp_path / "packed", tokenizer, tmp_path / "out")
    assert again.status == "already complete"


def test_excluded_episodes_have_no_codes(
    whole: Path, tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    encoded(tree, tokenizer, tmp_path / "out", exclude="1")
    assert CodesFolder.open(tmp_path / "out").episodes() == ["episode_000000", "episode_000002"]
    with pytest.raises(UsageError, match='exclude "1"'):
        encoded(tree, tokenizer, tmp_path / "out")
    with pytest.raises(DataError):
        encoded(tree, tokenizer, tmp_path / "none", exclude="0:3")


def test_worker_processes_together_write_what_one_process_writes(
    whole: Path, tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    recorder = Recorder()

    result = encoded(tree, tokenizer, tmp_path / "out", recorder, nproc=2)

    assert (result.status, result.processes) == ("written", 2)
    assert contents(tmp_path / "out") == contents(whole)
    (_, total), bar = recorder.bars[0], recorder.last_bar
    assert (bar.done, bar.fields["pictures"]) == (total, IMAGES)


def test_processes_of_a_rank_are_refused(
    tree: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError):
        encoded(tree, tokenizer, tmp_path / "out", nproc=2)


def test_wrong_paths_and_plans_are_answered_without_torch(
    tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    out, lost = str(tmp_path / "out"), str(tmp_path / "lost")
    rows = [
        (["encode", lost, "--tokenizer", tokenizer], 3),
        (["encode", str(tree), "--tokenizer", lost], 3),
        (["encode", str(tree), "--tokenizer", tokenizer, "--output", out, "--dry-run"], 0),
        (["decode", lost, "--tokenizer", tokenizer, "--output", out], 3),
        (["decode", str(tree), "--tokenizer", lost, "--output", out], 3),
        (["tokenizer", "eval", lost, str(tree)], 3),
        (["tokenizer", "eval", tokenizer, lost], 3),
    ]
    script = f"""
import sys
from vlatool.cli import app
for words, code in {rows!r}:
    assert app.run(["-q", *words]) == code, words
    assert "torch" not in sys.modules, words
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not Path(out).exists()


def _config(tree: Path, tokenizer: str, output: Path) -> EncodeConfig:
    keys = {"data": str(tree), "tokenizer": tokenizer, "output": str(output)}
    return EncodeConfig.model_validate({**keys, "num_workers": 0, "check_every": 4})


def test_repeated_run_encodes_only_missing_codes(
    tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    encoded(tree, tokenizer, tmp_path / "out")
    before = contents(tmp_path / "out")
    next((tmp_path / "out/episode_000001").iterdir()).unlink()

    result = encoded(tree, tokenizer, tmp_path / "out", skip_existing=True)

    assert result.status == "written"
    assert contents(tmp_path / "out") == before


def test_other_tokenizer_is_refused_and_another_name_is_not(
    whole: Path, tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer, tmp_path / "renamed")
    assert encoded(tree, str(tmp_path / "renamed")).status == "already complete"
    with fails("usage.output_differs"):
        encoded(tree, write_tokenizer(tmp_path / "other", seed=4))
    assert CodesFolder.open(whole).manifest.tokenizer == "tiny"
    with fails("data.mismatch"):
        _decoded(whole, str(tmp_path / "other"), tmp_path / "out")


def test_first_stage_makes_codes_and_cannot_decode(whole: Path, tree: Path, tmp_path: Path) -> None:
    first = write_tokenizer(tmp_path / "first", stage=1)
    encoded(tree, first, tmp_path / "out")
    assert not (tmp_path / "out/checks").exists()
    with fails("data.missing"):
        _decoded(tmp_path / "out", first, tmp_path / "decoded")


def test_bfloat16_reports_the_share_of_equal_codes(
    tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    result = encoded(tree, tokenizer, tmp_path / "out", precision="bf16")
    manifest = CodesFolder.open(tmp_path / "out").manifest
    assert manifest.precision == "bf16"
    assert 0.5 < manifest.agreement <= 1
    assert result.agreement == manifest.agreement


def test_image_shards_have_the_codes_of_their_images(
    whole: Path, tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    image_shards(tree, tmp_path / "shards")
    with fails("usage.missing_key"):
        encoded(tmp_path / "shards", tokenizer)
    encoded(tmp_path / "shards", tokenizer, tmp_path / "out")
    codes = CodesFolder.open(tmp_path / "out").manifest
    assert codes.digest == CodesFolder.open(whole).manifest.digest


SMALL, IMAGE = saved(image(1, SIDE + 4, SIDE)), image(1, SIDE, SIDE)
GRAY = saved(IMAGE.convert("L"))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (SMALL, "data.mismatch"),
        (GRAY, "data.mismatch"),
        (saved(IMAGE.convert("RGBA")), "data.mismatch"),
        (saved(IMAGE)[:-30], "data.broken"),
        (b"", "data.broken"),
    ],
    ids=["other-size", "gray", "alpha", "cut-off", "empty"],
)
def test_bad_image_fails_only_its_episode(
    damaged: Path, tokenizer: str, content: bytes, code: str
) -> None:
    write(damaged, image_name(1), content)
    with pytest.raises(PartialFailure) as caught:
        encoded(damaged, tokenizer, batch_size=3)
    (failure,) = caught.value.details["failures"]
    assert (failure["episode"], failure["code"]) == ("episode_000001", code)
    assert "frame_000002" in failure["message"]
    assert CodesFolder.open(damaged / "TiToken").episodes() == ["episode_000000", "episode_000002"]


class Runs:
    def __reduce__(self) -> object:
        return (print, ("this must not be run",))


def test_image_of_another_size_is_resized_by_the_stored_preprocessing(
    damaged: Path, tokenizer: str, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer, tmp_path / "resizes")
    path = tmp_path / "resizes/config.yaml"
    document = yaml.safe_load(path.read_text())
    document["dataset"]["preprocessing"]["resize_shorter_edge"] = SIDE
    path.write_text(yaml.safe_dump(document))
    write(damaged, image_name(1), SMALL)

    assert encoded(damaged, str(tmp_path / "resizes")).resized == 1


@pytest.mark.parametrize("damage", ["half", "code", "continuous"])
def test_unusable_tokenizer_is_an_error(
    damage: str, tree: Path, tokenizer: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    if damage == "continuous":
        write_continuous_tokenizer(folder)
    else:
        weights = Path(shutil.copytree(tokenizer, folder)) / "pytorch_model.bin"
        code = pickle.dumps({"weight": Runs()}, protocol=2)
        weights.write_bytes(code if damage == "code" else weights.read_bytes()[:4000])
    with pytest.raises(VlatoolError) as caught:
        encoded(tree, str(folder), tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def _decoded(codes: Path, tokenizer: str, output: Path) -> DecodeResult:
    return decode(DecodeConfig(codes=str(codes), tokenizer=tokenizer, output=str(output)))


def test_decoded_images_are_those_of_the_tokenizer(
    whole: Path, tokenizer: str, tmp_path: Path
) -> None:
    result = _decoded(whole, tokenizer, tmp_path / "out")
    episode = CodesFolder.open(whole).read("episode_000002")
    codes = torch.from_numpy(episode.codes.astype(np.int64))
    expected = open_tokenizer(tokenizer, CPU).network.decode(codes).numpy()
    path = tmp_path / f"out/episode_000002/{episode.stems[4]}.png"
    assert result.pictures == IMAGES
    assert np.array_equal(np.asarray(Image.open(path)), expected[4])

    stem = episode.stems[3]  # the codes of one image
    _decoded(whole / f"episode_000002/{stem}.json", tokenizer, tmp_path / "single")
    assert [path.name for path in (tmp_path / "single").rglob("*.png")] == [f"{stem}.png"]

    assert not verified(tmp_path / "out").codes
    path.unlink()
    assert [*verified(tmp_path / "out").codes] == ["output.size_mismatch"]


def test_codes_out_of_range_fail_their_episode(whole: Path, tokenizer: str, tmp_path: Path) -> None:
    codes = tmp_path / "TiToken"
    shutil.copytree(whole, codes, ignore=shutil.ignore_patterns(".vlatool"))
    stem = CodesFolder.open(whole).stems("episode_000001")[0]
    (codes / f"episode_000001/{stem}.json").write_text(str([[64]] * 8))
    with pytest.raises(PartialFailure) as caught:
        _decoded(codes, tokenizer, tmp_path / "out")
    failed = [(failure["episode"], failure["code"]) for failure in caught.value.details["failures"]]
    assert failed == [("episode_000001", "data.broken")]


def test_page_of_samples_shows_images_decoded_from_the_codes(tmp_path: Path) -> None:
    codes = {"type": "vq", "codebook_size": 4096, "token_size": 6}
    tokenizer = write_tokenizer(tmp_path / "t", num_latent_tokens=32, quantizer=codes)
    tree = published_windows(tmp_path / "A", 1, 3)
    for path in tree.glob("images/*/*.png"):
        path.write_bytes(saved(image(1, SIDE, SIDE)))
    encoded(tree, tokenizer)
    samples = {"data": str(tree), "fast": str(plain_fast(tmp_path / "fast")), "workers": 1}
    build_dataset(BuildDatasetConfig.model_validate({**samples, "output": str(tmp_path / "out")}))
    kinds = tmp_path / "kinds.html"
    inspect(InspectConfig(location=str(tmp_path / "out"), html=str(kinds), html_samples=2))
    for text in ("what action should be executed?", "what will be the resulting state?"):
        assert kinds.read_text().count(text) == 1
    assert kinds.read_text().count("&lt;Rec&gt;") == 2 * 32
    counts: list[int] = []
    for decoder in (None, tokenizer):
        page = tmp_path / "page.html"
        keys = {"location": str(tmp_path / "out"), "html": str(page), "html_samples": 1}
        inspect(InspectConfig.model_validate({**keys, "tokenizer": decoder}))
        counts.append(page.read_text().count("<figure"))
    assert counts[1] == counts[0] + 32


def test_page_of_codes_shows_their_use_and_the_check_images(
    whole: Path, tokenizer: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    inspect(InspectConfig(location=str(whole), html=str(page), html_samples=2))
    text = page.read_text()
    folder = CodesFolder.open(whole)
    codes = np.concatenate([folder.read(episode).codes for episode in folder.episodes()])
    used, size = len(np.unique(codes)), folder.manifest.codebook_size
    assert f"{used:,} codes of {size:,} in use; {size - used:,} codes unused" in text
    # Two check images, and two images with their codes.
    assert text.count("<img") == 2 + 2
    assert " ".join(map(str, folder.read(folder.episodes()[0]).codes[3].tolist())) in text

    copy = CodesFolder.open(Path(shutil.copytree(whole, tmp_path / "TiToken")))
    for path in copy.path_of(copy.episodes()[0]).glob("*.json"):
        path.write_text("[]")
    inspect(InspectConfig(location=str(copy.path), html=str(page)))
    assert 'class="note"' in page.read_text()
    with pytest.raises(UsageError):  # only samples are decoded
        inspect(InspectConfig(location=str(whole), tokenizer=tokenizer, html=str(page)))


def test_object_storage_has_the_same_files_as_local_folders(
    tree: Path, tokenizer: str, s3_bucket: str, tmp_path: Path
) -> None:
    bucket = RemotePath(f"s3://{s3_bucket}")
    remote_tree, remote = bucket / "A", upload(Path(tokenizer), bucket / "tiny")
    upload(tree / "images", remote_tree / "images")

    encoded(remote_tree, str(remote), layout="packed")
    _decoded(remote_tree / "tokens", str(remote), bucket / "decoded")

    encoded(tree, tokenizer, tmp_path / "codes", layout="packed")
    _decoded(tmp_path / "codes", tokenizer, tmp_path / "decoded")
    assert digests(remote_tree / "tokens") == digests(tmp_path / "codes")
    assert digests(bucket / "decoded") == digests(tmp_path / "decoded")
