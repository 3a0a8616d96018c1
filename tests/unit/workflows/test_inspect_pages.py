"""`inspect --html` writes one page with images and charts of the contents of a location."""

import base64
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from tests.builders.pages import charts_of
from tests.builders.spartan import spartan_task
from tests.surface.invoke import run_vlatool
from vlatool.config.resolve import config_of
from vlatool.media.npz import write_arrays
from vlatool.media.tar import TarWriter, member_bytes
from vlatool.media.video import copy_clip
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, InspectResult, inspect

HOSTILE = "<script>alert('x')</script> & \"friends\""
# Elements without an end tag.
VOID = {"meta", "img", "br", "wbr", "input"}


class ParsedPage(HTMLParser):
    """Parsed page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.images: list[dict[str, str]] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + "\n"

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.count[tag] += 1
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "img":
            self.images.append(values)
        if tag == "a":
            self.links.append(values["href"])
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]

    def images_of(self, camera: str) -> int:
        return sum(image["alt"].startswith(f"{camera}, ") for image in self.images)


def inspected(location: Path, target: Path, **options: Any) -> InspectResult:
    return inspect(InspectConfig(location=str(location), html=str(target), **options))


def page_of(location: Path, tmp_path: Path, **options: Any) -> ParsedPage:
    target = tmp_path / "page.html"
    inspected(location, target, **options)
    return ParsedPage(target.read_text())


def with_cameras_from_above(documents: dict[str, dict[str, Any]]) -> None:
    """Moves the cameras 3 m above the arms, looking down, so that they see all positions."""
    frames = len(documents["actions"]["actions"])
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    down[:3, 3] = (0.3, 0.8, 3.0)
    for name in documents["extrinsics"]:
        documents["extrinsics"][name] = np.tile(down, (frames, 1, 1))


@pytest.fixture(scope="module")
def spartan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spartan") / "raw"
    changes = dict.fromkeys(range(3), with_cameras_from_above)
    return spartan_task(root, 3, 12, instruction=HOSTILE, changes=changes)


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lerobot_dataset(tmp_path_factory.mktemp("lerobot") / "pick")


def preprocessed(format_: str, source: Path, output: Path, **keys: Any) -> Path:
    tree = {
        "format": format_,
        "sources": [str(source)],
        "output": str(output),
        "samples_per_shard": 8,
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 3,
        "workers": 1,
        **keys,
    }
    preprocess(config_of(PreprocessConfig, tree))
    return output


@pytest.fixture(scope="module")
def data(spartan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preprocessed("spartan", spartan, tmp_path_factory.mktemp("data") / "out")


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """Writes a shard of any members."""
    with path.open("wb") as file:
        tar = TarWriter(file)
        for key, members in samples.items():
            for suffix, content in members.items():
                tar.append(member_bytes(f"{key}.{suffix}", content))
        tar.finish()
    return path


def sample_members(anchor: int = 3, episode: str = "e", **changes: bytes) -> dict[str, bytes]:
    """Members of a small sample; `changes` replace some, named with `_` for `.`."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "JPEG")
    steps = np.arange(4.0)
    arrays = {
        "action": steps[:, None] + [0.0, 1.0],
        "observation.state": steps,
        "past_mask": np.array([True, False, False, False]),
        "future_mask": np.array([False, True, True, False]),
    }
    metadata = {"episode_id": episode, "anchor_timestep": anchor, "anchor_relative_idx": 1}
    members = {
        "front_t0.jpg": buffer.getvalue(),
        "lowdim.npz": write_arrays(arrays),
        "metadata.json": json.dumps(metadata).encode(),
        "language_instructions.json": json.dumps({"original": HOSTILE}).encode(),
    }
    return {**members, **changes}


# Any page


@pytest.fixture(params=["spartan", "lerobot", "data", "shard", "episode"])
def location(request: pytest.FixtureRequest) -> Path:
    name = request.param
    if name in ("shard", "episode"):
        output = request.getfixturevalue("data")
        return next(iter(sorted(output.glob(f"{name}s/*.tar"))))
    return request.getfixturevalue(name)


def test_every_page_is_well_formed_deterministic_and_fetches_nothing(
    location: Path, tmp_path: Path
) -> None:
    page = page_of(location, tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert page.count["html"] == page.count["main"] == page.count["h1"] == 1
    assert page.images
    assert all(
        address.startswith(("data:image/jpeg;base64,", "data:video/mp4;base64,", "#"))
        for address in page.addresses
    )
    assert not [word for word in ("http://", "https://", "@import") if word in text]
    assert len(text) < 5e6
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    inspected(location, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


def test_each_episode_has_a_strip_per_camera_with_poses(spartan: Path, tmp_path: Path) -> None:
    page = page_of(spartan, tmp_path, html_episodes=2)
    assert page.images_of("wrist_left_minus") == 2 * 8
    # The third episode is shown in brief.
    assert page.images_of("scene_right_0") == 2 * 8 + 4
    assert page.count["script"] == 1
    assert HOSTILE in page.text

    page = page_of(spartan, tmp_path, episodes="0")
    # Two arms with a ring of two circles and three axes each, on 2 cameras x 8 images.
    assert page.count["circle"] == 2 * 2 * 2 * 8
    assert page.count["line"] >= 3 * 2 * 2 * 8


def test_an_episode_has_its_frames_once_and_a_chart_per_policy_field(
    lerobot: Path, tmp_path: Path
) -> None:
    page = page_of(lerobot, tmp_path, html_episodes=1)
    # Action, state and gripper in full, the action of the other episode.
    assert len(charts_of((tmp_path / "page.html").read_text())) == 3 + 1
    assert page.count["circle"] == 0  # of poses: nothing is calibrated
    page = page_of(lerobot, tmp_path, episodes="1")
    assert page.images_of("observation.images.front") == 4


def test_each_episode_is_reached_from_its_image(tmp_path: Path) -> None:
    source = lerobot_dataset(tmp_path / "data", (6, 1, 4, 5, 3))
    (source / "data/chunk-000/episode_000003.parquet").write_bytes(b"no parquet")
    page = page_of(source, tmp_path, html_episodes=1)
    assert {link for link in page.links if link.startswith("#e")} == {"#e0", "#e1", "#e2", "#e4"}
    assert {"e0", "e1", "e2", "e4", "problems"} <= page.ids
    assert sum(link == "#problems" for link in page.links) == 2
    assert "1 frame\n" in page.text
    assert "data_episode_000003" in page.text


def videos_of(page: Path) -> list[bytes]:
    parsed = ParsedPage(page.read_text())
    texts = [text for text in parsed.addresses if text.startswith("data:video/mp4")]
    return [base64.b64decode(text.partition(",")[2]) for text in texts]


def test_videos_that_browsers_play_are_copied(lerobot: Path, tmp_path: Path) -> None:
    inspected(lerobot, tmp_path / "page.html", episodes="0")
    reader = LeRobotReader(LeRobotConfig())
    episode = reader.read(next(iter(reader.discover([lerobot]))))
    for source, data in zip(
        episode.cameras.values(), videos_of(tmp_path / "page.html"), strict=True
    ):
        assert source.clip is not None
        copied = copy_clip(source.clip, len(source), Fraction(episode.fps or 0))
        assert copied is not None
        assert data == copied.data


def test_other_images_become_a_video_with_a_frame_for_each(tmp_path: Path) -> None:
    sample(SampleConfig(layout="hdf5", output=str(tmp_path / "raw"), episodes=1))
    result = inspected(tmp_path / "raw", tmp_path / "page.html", video=True)
    for data in videos_of(tmp_path / "page.html"):
        with av.open(io.BytesIO(data)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == result.report.facts["frames"]
    assert len(videos_of(tmp_path / "page.html")) == len(result.report.facts["cameras"]) > 0


def test_videos_are_left_out_on_request(lerobot: Path, tmp_path: Path) -> None:
    inspected(lerobot, tmp_path / "page.html", video=False)
    assert videos_of(tmp_path / "page.html") == []


def test_videos_need_raw_episodes_and_a_page(lerobot: Path, data: Path, tmp_path: Path) -> None:
    for location, page in ((lerobot, None), (data, str(tmp_path / "page.html"))):
        config = InspectConfig(location=str(location), html=page, video=True)
        with fails("usage.bad_value", 2):
            inspect(config)


def test_a_single_episode_folder_is_a_source_whose_images_are_small(
    spartan: Path, tmp_path: Path
) -> None:
    folder = next(spartan.rglob("episode_1"))
    assert page_of(folder, tmp_path).images_of("scene_right_0") == 8
    wide = spartan_task(tmp_path / "wide", 1, 2, size=(300, 500))
    for image in page_of(wide, tmp_path).images:
        content = base64.b64decode(image["src"].partition(",")[2])
        assert Image.open(io.BytesIO(content)).size in {(240, 144), (160, 96)}


def test_undecodable_images_are_reported(tmp_path: Path) -> None:
    cameras = {"observation.images.front": "image"}

    def damage(number: int, columns: dict[str, Any]) -> None:
        if number == 0:
            columns["observation.images.front"][2] = {"bytes": b"no picture", "path": None}

    source = lerobot_dataset(tmp_path / "data", cameras=cameras, change=damage)
    page = page_of(source, tmp_path, html_episodes=2)
    assert page.images_of("observation.images.front") == 4
    assert "frame 2" in page.text


def test_a_data_folder_shows_samples_of_several_shards_with_poses(
    data: Path, tmp_path: Path
) -> None:
    page = page_of(data, tmp_path, html_samples=4)
    # Images one frame before the anchor and at it.
    assert page.images_of("scene_right_0") == 4 * 2
    shown = {line for line in page.text.split("\n") if line.startswith("shard_")}
    assert len(shown) >= 3
    assert page.count["circle"] == 4 * 2 * 2 * 2 * 2
    page = page_of(data / "shards/shard_000001.tar", tmp_path, html_samples=3)
    assert page.images_of("wrist_left_minus") == 3 * 2
    page = page_of(data, tmp_path, html_samples=0)  # statistics
    assert page.images == []
    assert "percentile" not in page.text


def test_padded_steps_are_shaded(tmp_path: Path) -> None:
    page = page_of(write_tar(tmp_path / "shard.tar", {"a": sample_members()}), tmp_path)
    # Actions and state: the last of the steps -1 to 2 is padded.
    charts = charts_of((tmp_path / "page.html").read_text())
    assert [chart["axis"]["shaded"] for chart in charts] == [[[1.5, 2.5]]] * 2
    assert HOSTILE in page.text
    assert page.count["blockquote"] == 1  # a single sentence is shown once


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, action=np.array([{"a": 1}], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"lowdim.npz": b"PK no archive"},
        {"lowdim.npz": pickled()},
        {"lowdim.npz": write_arrays({})},
        {"metadata.json": b"{"},
        {"language_instructions.json": b"\xff"},
    ],
    ids=["no-npz", "pickle", "empty", "metadata", "language"],
)
def test_a_broken_sample_is_a_note_among_the_others(
    changes: dict[str, bytes], tmp_path: Path
) -> None:
    samples = {"a": {**sample_members(), **changes}, "b": sample_members(4, "other")}
    page = page_of(write_tar(tmp_path / "shard.tar", samples), tmp_path)
    assert (tmp_path / "page.html").read_text().count('class="note"') == 1
    assert page.images_of("front") == 1


def test_a_damaged_shard_shows_its_complete_samples(data: Path, tmp_path: Path) -> None:
    whole = (data / "shards/shard_000000.tar").read_bytes()
    cut = tmp_path / "shard.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    assert page_of(cut, tmp_path, html_samples=1).images_of("scene_right_0") >= 1
    write_tar(cut, {"a": {**sample_members(), "front_t0.jpg": b"no picture"}})
    assert "front_t0.jpg cannot be decoded" in page_of(cut, tmp_path).text


@pytest.mark.parametrize(
    "metadata",
    [
        {"anchor_relative_idx": 99, "anchor_timestep": "x", "image_timesteps": "y", "fps": -1},
        {"anchor_relative_idx": -5, "fps": 1e999, "camera_names": {"a": [HOSTILE]}},
        {},
        [],
    ],
)
def test_unusual_metadata_is_tolerated(metadata: object, tmp_path: Path) -> None:
    members = {**sample_members(), "metadata.json": json.dumps(metadata).encode()}
    page = page_of(write_tar(tmp_path / "shard.tar", {"a": members, "b": members}), tmp_path)
    assert page.images_of("front") == 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"action": np.full((4, 2), np.nan), "past_mask": np.zeros(4, bool)},
        {"action": np.zeros((4, 2, 2)), "other": np.array(["text"] * 4), "one": np.array(1.0)},
        {"action": np.array([[1e308], [-1e308], [np.inf], [0.0]]), "wide": np.ones((4, 40))},
        {"robot__actual__poses__left::panda__xyz": np.zeros((4, 3), np.float32)},
    ],
)
def test_unusual_arrays_are_tolerated(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    camera = {
        "rescaled_intrinsics.front": np.zeros((4, 3, 3)),
        "extrinsics.front": np.full((4, 4, 4), np.nan),
    }
    members = {**sample_members(), "lowdim.npz": write_arrays({**arrays, **camera})}
    page = page_of(write_tar(tmp_path / "shard.tar", {"a": members}), tmp_path)
    assert page.images_of("front") == 1


def test_broken_statistics_and_a_manifest_with_too_many_samples_are_reported(
    data: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    path = copy / "shards/stats.json"
    stats: dict[str, Any] = json.loads(path.read_text())
    damage: list[Callable[[dict[str, Any]], Any]] = [
        lambda entry: entry.update(mean="x"),
        lambda entry: entry.update(std_per_timestep=0.0, std=0.0),
        lambda entry: entry.update(mean_per_timestep=[[None]], percentile_1=None),
        lambda entry: entry.clear(),
    ]
    for change, entry in zip(damage, stats.values(), strict=False):
        change(entry)
    path.write_text(json.dumps(stats))
    assert page_of(copy, tmp_path, html_samples=0).count["table"] > 3
    (copy / "shards/manifest.jsonl").write_text('{"shard": "shard_000000", "num_sequences": 99}')
    page_of(copy, tmp_path)
    assert "there is no sample" in (tmp_path / "page.html").read_text()


def test_a_run_has_no_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {type: diffusion_policy}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "checkpoints").mkdir()
    with fails("usage.unknown_name"):
        inspected(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_the_page_and_keeps_stdout_pure(lerobot: Path, tmp_path: Path) -> None:
    target = tmp_path / "new/page.html"
    words = ("inspect", str(lerobot), "--html-episodes", "1", "--json", "--html")
    code, text = run_vlatool(*words, str(target))
    assert (code, json.loads(text)["html"]) == (0, str(target))
    assert ParsedPage(target.read_text()).images_of("observation.images.front") > 0
    assert "html" not in json.loads(run_vlatool("inspect", str(lerobot), "--json")[1])
    for bad, exit_code, error in (
        (target / "page.html", 5, "storage.write"),
        (tmp_path, 2, "usage.bad_value"),
    ):
        code, text = run_vlatool(*words, str(bad))
        assert (code, json.loads(text)["error"]["code"]) == (exit_code, error)


def test_tar_headers_that_point_elsewhere_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not show")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        link = tarfile.TarInfo("a.metadata.json")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        for suffix, content in sample_members().items():
            if suffix != "metadata.json":
                info = tarfile.TarInfo(f"a.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    page = page_of(tmp_path / "shard.tar", tmp_path)
    assert "do not show" not in page.text
    assert page.images_of("front") == 1
