"""Files on every scheme, and commands on schemes with and without listings, equal local ones."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from tests.builders.memory_remote import MemoryRemote
from tests.builders.preprocessing import contents
from tests.builders.training import tiny_config
from tests.builders.web_server import COMMIT, WebServer, web_server
from vlatool.cli import app
from vlatool.config.resolve import config_of
from vlatool.errors import UsageError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.loading.dataset import open_dataset
from vlatool.storage.atomic import write_bytes
from vlatool.storage.uri import location, version_of
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import train
from vlatool.workflows.verify import InspectConfig, VerifyConfig, VerifyResult, inspect, verify


@pytest.fixture(scope="module")
def world(data: Path, trained_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository `lab/world`: `raw`, its `data`, a `run`, and the same episodes as `lerobot`."""
    root = tmp_path_factory.mktemp("site") / "lab/world"
    shutil.copytree(data.parent, root)
    shutil.copytree(trained_policy, root / "run")
    sample(
        SampleConfig(
            layout="lerobot", output=str(root / "lerobot"), episodes=2, frames=12, workers=1
        )
    )
    lerobot_dataset(root / "shared", (20, 14, 25), version="v3.0")
    return root


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebServer]:
    """Web server and hub with the repository."""
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with web_server(world.parents[1]) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture(params=["http", "gs"])  # without listings and with them
def remote(request: pytest.FixtureRequest, server: WebServer, gs_root: str, world: Path) -> str:
    """Location of a copy of the repository."""
    return copy_in(request.param, world, server, {"gs": gs_root})


def copy_in(scheme: str, folder: Path, server: WebServer, roots: dict[str, str]) -> str:
    """Location of a copy of a repository on a scheme; `roots` has those that are written."""
    name = "/".join(folder.parts[-2:])
    if scheme == "http":
        return f"{server.endpoint}/{name}"
    if scheme == "hf":
        return f"hf://datasets/{name}"
    return uploaded(folder, f"{roots[scheme]}/{folder.name}")


def uploaded(folder: Path, target: str) -> str:
    """Copies a local folder; returns `target`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            write_bytes(location(f"{target}/{name}"), path.read_bytes())
    return target


def preprocessed(source: str, output: str | Path, **keys: Any) -> PreprocessResult:
    tree = {"format": "lerobot", "sources": [source], "output": str(output), "workers": 1, **keys}
    tree["sink"] = "lbm"
    return preprocess(config_of(PreprocessConfig, tree))


def verified(root: str) -> VerifyResult:
    result = verify(VerifyConfig(location=root))
    assert isinstance(result, VerifyResult)
    return result


def options(output: Path) -> dict[str, Any]:
    return yaml.safe_load((output / "shards/preprocessing_config.yaml").read_text())


def test_a_large_remote_video_is_read_in_ranges(
    memory: str,
    world: Path,
    here_of: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file may exceed the 64 MiB up to which one is read at once."""
    uploaded(world / "shared", f"{memory}/shared")
    key = "shared/videos/observation.images.front/chunk-000/file-000.mp4"
    unused = 80 * 2**20
    box = (unused + 8).to_bytes(4) + b"free" + bytes(unused)
    store = MemoryRemote(memory)
    store.put(key, store.objects[key][0] + box)
    requested: list[int] = []
    get = MemoryRemote.get

    def counted_get(self: MemoryRemote, key: str, start: int, stop: int, etag: str) -> Any:
        requested.append(min(stop, self.head(key).size) - start)
        return get(self, key, start, stop, etag)

    monkeypatch.setattr(MemoryRemote, "get", counted_get)
    preprocessed(f"{memory}/shared", tmp_path / "there")
    folders = (here_of["shared"], tmp_path / "there")
    shards = [folder / "shards/shard_000000.tar" for folder in folders]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    assert sum(requested) < unused // 4


@pytest.fixture(scope="module")
def here_of(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of local data."""
    root = tmp_path_factory.mktemp("here")
    for name in ("lerobot", "shared"):
        preprocessed(str(world / name), root / name)
    return {name: root / name for name in ("lerobot", "shared")}


def test_output_has_the_bytes_of_local_data(
    remote: str, here_of: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("lerobot", "shared"):  # one file per episode, and files of several
        there = tmp_path / f"there-{name}"
        preprocessed(f"{remote}/{name}", there)
        here, outputs = contents(here_of[name]), contents(there)
        assert here.keys() == outputs.keys()
        assert [name for name in here if here[name] != outputs[name]] in (
            [],
            ["shards/preprocessing_config.yaml"],
        )
        recorded = options(there)
        recorded.pop("versions", None)
        assert recorded == options(here_of[name])


def test_remote_artifacts_are_inspected_and_verified(remote: str) -> None:
    kinds = {
        "lerobot": "source",
        "data": "shards",
        "data/shards/shard_000000.tar": "shard",
        "run": "run",
        "run/checkpoints/step_00000006": "checkpoint",
    }

    for name, kind in kinds.items():
        assert inspect(InspectConfig(location=f"{remote}/{name}")).report.kind == kind
        result = verified(f"{remote}/{name}")
        assert result.counts["error"] == 0, name
        resting = result.codes.get("lerobot.constant_dimensions", 0)  # in a few frames
        assert result.counts["warning"] == resting, name
        assert result.checked["files"] > 0, name


def test_training_and_evaluation_give_the_numbers_of_local_data(
    remote: str, world: Path, tmp_path: Path
) -> None:
    keys = {"save_every_n_steps": 3, "data__dataset_manifest": f"{remote}/data"}
    trained = train(tiny_config(world / "data", tmp_path / "run", **keys))
    evaluated = [
        open_loop(
            OpenLoopConfig(
                checkpoint=f"{root}/run",
                data=f"{root}/data",
                output=str(tmp_path / f"eval{number}"),
                max_samples=8,
            )
        ).overall
        for number, root in enumerate((str(world), remote))
    ]

    assert contents(tmp_path / "run")["stats.json"] == (world / "run/stats.json").read_bytes()
    weights = "checkpoints/step_00000006/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (world / "run" / weights).read_bytes()
    assert trained.steps == 6
    assert evaluated[0] == evaluated[1]


def test_all_steps_from_a_bucket_to_a_bucket(
    gs_root: str, world: Path, here_of: dict[str, Path], tmp_path: Path
) -> None:
    source = uploaded(world / "lerobot", f"{gs_root}/lerobot")
    output = f"{gs_root}/data"
    preprocessed(source, output)
    assert verified(output).counts["error"] == 0
    for name in ("shards/shard_000000.tar", "shards/stats.json"):
        assert location(f"{output}/{name}").read_bytes() == (here_of["lerobot"] / name).read_bytes()

    shards = uploaded(world / "data", f"{gs_root}/world")
    keys: dict[str, Any] = {"save_every_n_steps": 2, "data__dataset_manifest": shards}
    keys |= {"remote_sync": f"{gs_root}/runs", "total_train_steps": 4}
    for machine in ("here", "there"):
        result = train(tiny_config(world / "data", tmp_path / machine / "run", **keys))
    assert result.status == "already complete"


class TestWeb:
    def test_optimizer_state_is_not_fetched_for_a_policy_whose_results_need_an_output(
        self, server: WebServer, world: Path, tmp_path: Path
    ) -> None:
        keys: Any = {"checkpoint": f"{server.endpoint}/lab/world/run", "data": str(world / "data")}
        with fails("usage.missing_key"):
            open_loop(OpenLoopConfig(**keys))

        open_loop(OpenLoopConfig(**keys, output=str(tmp_path / "eval"), max_samples=8))
        assert not [path for _, path, _ in server.faults.requests if path.endswith("trainer.pt")]

    def test_damaged_remote_weights_are_an_error(
        self, server: WebServer, tmp_path: Path, memory: str, world: Path
    ) -> None:
        run = uploaded(world / "run", f"{memory}/run")
        weights = location(f"{run}/checkpoints/step_00000006/ema.safetensors")
        write_bytes(weights, weights.read_bytes()[:-1] + b"!")

        with fails("data.broken"):
            open_loop(OpenLoopConfig(checkpoint=run, data=str(world / "data")))

    def test_files_of_an_episode_are_requested_only_when_it_is_read_and_a_listing_is_an_error(
        self, server: WebServer, tmp_path: Path
    ) -> None:
        source = f"{server.endpoint}/lab/world/lerobot"
        preprocessed(source, tmp_path / "out", dry_run=True, episodes="0")
        requested = {path for _, path, _ in server.faults.requests}
        assert not [path for path in requested if path.endswith("episode_000001.mp4")]

        words = ["preprocess", "spartan", f"{server.endpoint}/lab/world/raw"]
        assert app.run([*words, "-o", str(tmp_path / "out"), "-q"]) == 5


class TestHub:
    data = "hf://datasets/lab/world/data"
    lerobot = "hf://datasets/lab/world/lerobot"

    def moved(self, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Moves the branch to another commit, and simulates a new process."""
        server.faults.commit = "f" * 40
        monkeypatch.setenv("VLATOOL_TEST", "another process")

    def test_preprocessing_does_not_mix_commits(
        self, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preprocessed(self.lerobot, tmp_path / "out")
        assert options(tmp_path / "out")["versions"] == {self.lerobot: COMMIT}
        assert COMMIT in (tmp_path / "out/.vlatool/run.json").read_text()
        self.moved(server, monkeypatch)

        with pytest.raises(UsageError) as caught:
            preprocessed(self.lerobot, tmp_path / "out")
        named = preprocessed(f"hf://datasets/lab/world@{COMMIT}/lerobot", tmp_path / "out")

        assert caught.value.code == "usage.missing_file"
        assert COMMIT in caught.value.hint
        assert named.status == "already complete"

    def test_training_does_not_mix_commits(
        self, server: WebServer, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = {"total_train_steps": 1, "data__dataset_manifest": self.data}
        train(tiny_config(world, tmp_path / "run", **keys))
        self.moved(server, monkeypatch)

        with pytest.raises(UsageError) as caught:
            train(tiny_config(world, tmp_path / "run", **keys))
        keys["data__dataset_manifest"] = self.data.replace("world", f"world@{COMMIT}")
        named = train(tiny_config(world, tmp_path / "run", **keys))

        assert caught.value.code == "usage.missing_file"
        assert named.status == "already complete"

    def test_opened_data_set_has_one_commit(self, server: WebServer) -> None:
        data = open_dataset(self.data)

        shards = data.info.datasets[0].shards
        assert {version_of(shard.location) for shard in shards} == {COMMIT}


class TestBadInput:
    """Exit codes and output of the command line."""

    def test_file_that_changes_with_every_request_ends_the_command(
        self, server: WebServer, tmp_path: Path
    ) -> None:
        server.faults.cut_after, server.faults.changes_every = 2000, 1
        source = f"{server.endpoint}/lab/world/data"

        assert app.run(["verify", source, "-q"]) == 5

    @pytest.mark.parametrize(
        "root",
        [
            "https://user:hunter2@host/x",
            "https://host/x?token=hunter2",
            "s3://key:hunter2@bucket/x",
            "gs://key:hunter2@bucket/x",
            "hf://user:hunter2@datasets/a/b",
        ],
    )
    @pytest.mark.parametrize(
        "words",
        [
            "inspect PLACE",
            "verify PLACE",
            "preprocess lerobot PLACE -o out",
            "preprocess lerobot raw -o PLACE",
            "train -p diffusion-policy-tiny --data raw,PLACE --output run",
            "resolve-config -p diffusion-policy-tiny --data PLACE",
            "eval open-loop PLACE data -o out",
        ],
    )
    def test_secret_in_a_location_is_an_error_and_never_shown(
        self,
        root: str,
        words: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        argv = [*words.replace("PLACE", root).split(), "--json", "-v", "--log-file", "log"]
        monkeypatch.setattr("sys.argv", ["vlatool", *argv])

        assert app.run(argv) == 2

        shown = "".join(capsys.readouterr())
        written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
        assert "usage.secret" in shown
        assert "hunter2" not in "".join([shown, *written])
