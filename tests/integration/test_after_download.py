"""Downloads as inputs of other commands: unfinished ones are refused, and what comes next works."""

import io
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.builders.codes import plain_fast, published_windows
from tests.builders.errors import fails
from tests.builders.preprocessing import run as preprocessed
from tests.builders.spartan import spartan_task
from tests.builders.toy_images import write_image_shards
from tests.builders.web_server import WebServer, web_server
from vlatool.cli.app import run
from vlatool.errors import PartialFailure
from vlatool.evaluation.policy_runner import load_policy
from vlatool.inspection import verify_location
from vlatool.jobs.record import OutputRecord, read_record
from vlatool.loading.dataset import open_dataset
from vlatool.recordings.artifact import recognize
from vlatool.recordings.check import CheckOptions
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.download import DownloadConfig, download
from vlatool.workflows.download_files import DownloadResult
from vlatool.workflows.fit_fast import FitFastConfig, fit_fast
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.split import SplitConfig, split
from vlatool.workflows.stats import StatsComputeConfig, StatsMergeConfig, stats_compute, stats_merge
from vlatool.workflows.verify import InspectConfig, inspect


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    (tmp_path / "site/lab").mkdir(parents=True)
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("VLATOOL_REGISTRY", running.endpoint)
        monkeypatch.chdir(tmp_path)
        yield running


def get(name: str, output: str = "out", **keys: object) -> DownloadResult:
    values = {"source": f"hf://datasets/lab/{name}", "output": output, **keys}
    result = download(DownloadConfig.model_validate(values))
    assert isinstance(result, DownloadResult)
    return result


@pytest.fixture
def unfinished(server: WebServer, tmp_path: Path) -> Path:
    """An output in which a folder has the name of a file that is missing."""
    (server.folder / "lab/set/a").mkdir(parents=True)
    (server.folder / "lab/set/a/1.json").write_text("{}")
    (server.folder / "lab/set/b.json").write_text("{}")
    get("set", "data/out", include=["a/*"])
    (tmp_path / "data/out/b.json").mkdir()
    with pytest.raises(PartialFailure):
        get("set", "data/out")
    return tmp_path / "data/out"


USES: list[Callable[[str], object]] = [
    lambda text: inspect(InspectConfig(location=text)),
    lambda text: preprocess(PreprocessConfig(sources=[text], output="new")),
    lambda text: preprocess(PreprocessConfig(format="spartan", sources=[text], output="new")),
    open_dataset,
    lambda text: open_dataset(text, kind="images"),
    lambda text: stats_compute(StatsComputeConfig(data=text)),
    lambda text: stats_merge(StatsMergeConfig(sources=[text, text], output="new.json")),
    lambda text: fit_fast(FitFastConfig(sources=[text], output="new")),
    lambda text: build_dataset(BuildDatasetConfig(data=text, fast="data", output="new")),
    load_policy,
    lambda text: split(SplitConfig(shards=text)),
]


@pytest.mark.parametrize("location", ["data/out", "data/out/a", "data", "data/out/a/1.json"])
def test_unfinished_download_is_refused_with_the_command_that_completes_it(
    unfinished: Path, location: str
) -> None:
    commands: set[str] = set()
    for use in USES:
        with fails("data.incomplete") as caught:
            use(location)
        commands |= {*caught.value.details["commands"]}
    (command,) = commands

    (unfinished / "b.json").rmdir()
    assert run(["-q", *shlex.split(command)[1:]]) == 0
    assert read_record(unfinished) is not None
    assert (unfinished / "b.json").read_text() == "{}"


def test_narrower_download_does_not_complete_a_wider_one(unfinished: Path) -> None:
    result = get("set", "data/out", include=["a/*"])

    assert result.next.endswith("--output data/out")
    assert "--include" not in result.next
    (finding,) = verify_location(unfinished, CheckOptions()).findings
    assert (finding.code, result.next in finding.message) == ("output.incomplete", True)

    (unfinished / "b.json").rmdir()
    get("set", "data/out")
    record = read_record(unfinished)
    assert record is not None
    assert (record.complete, record.pending_downloads) == (True, ())


def test_request_replaces_those_that_it_includes() -> None:
    def record(*requests: Mapping[str, object]) -> OutputRecord:
        return OutputRecord("download", {}, pending_downloads=requests)

    everything, part = {"source": "s3://a"}, {"source": "s3://a", "include": ["x"]}
    other = {"source": "s3://a", "include": ["y"]}

    assert record(everything).after(record(part, other)).pending_downloads == (everything,)
    assert record(part).after(record(everything, other)).pending_downloads == (
        part,
        everything,
        other,
    )


def _shards(folder: Path) -> None:
    preprocessed(spartan_task(folder.parent / "raw", 2, 8), folder)
    shutil.rmtree(folder / ".vlatool")


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (_shards, "output"),
        (published_windows, "windows"),
        (plain_fast, "fast"),
        (lambda folder: write_image_shards(folder, [2, 2]), "image-shards"),
    ],
)
def test_downloaded_data_of_other_programs_are_recognized(
    server: WebServer, tmp_path: Path, write: Callable[[Path], object], kind: str
) -> None:
    (server.folder / "lab/set").mkdir()
    write(server.folder / "lab/set")

    get("set")

    artifact = recognize(tmp_path / "out")
    assert artifact is not None
    assert artifact.kind == kind
    errors = [
        f
        for f in verify_location(tmp_path / "out", CheckOptions()).findings
        if f.severity == "error"
    ]
    assert not errors


def test_next_command_works_as_printed(server: WebServer) -> None:
    spartan_task(server.folder / "lab/set", 2, 8)

    text = _text_of("download", "hf://datasets/lab/set", "--output", "out")

    command = text.partition("next: ")[2].strip()
    assert command == "vlatool verify out"
    _text_of(*shlex.split(command)[1:])


def _text_of(*words: str) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        assert run(["-q", *words]) == 0
    return text.getvalue()
