"""Minimal run of each command that writes, and its result without times."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from tests.builders.encoding import encoded, image_tree, write_tokenizer
from tests.builders.images import image_shards, window_tree
from tests.builders.lerobot import lerobot_dataset
from tests.builders.libero import convert, libero_dataset
from tests.builders.preprocessing import contents, run
from tests.builders.s3_runs import digests
from tests.builders.tokenizers import LOSSES, NETWORK, SIDE, SIZES, write_stage_1, write_teacher
from tests.builders.training import tiny_config, world_shards
from tests.builders.web_server import web_server
from tests.builders.world_recordings import record_world
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import Override, config_of, load_config
from vlatool.evaluation.config import OpenLoopConfig, RolloutConfig
from vlatool.storage import transfer
from vlatool.storage.atomic import remove_tree
from vlatool.storage.remote_path import RemotePath
from vlatool.tokens.config import DecodeConfig
from vlatool.training.config import TrainConfig
from vlatool.workflows import download_raw
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.compose import ComposeConfig, compose
from vlatool.workflows.curate import CurateConfig, curate
from vlatool.workflows.demo import DemoConfig, demo
from vlatool.workflows.download import DownloadConfig, download
from vlatool.workflows.encode import decode
from vlatool.workflows.export import ExportConfig, TokenizerExportConfig, export, tokenizer_export
from vlatool.workflows.fit_fast import FitFastConfig, fit_fast
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.predict import PredictConfig, predict
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.recorder import record
from vlatool.workflows.repair import RepairConfig, repair
from vlatool.workflows.resolve_config import resolve_config
from vlatool.workflows.rollout import rollout
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.split import SplitConfig, split
from vlatool.workflows.stats import StatsComputeConfig, StatsMergeConfig, stats_compute, stats_merge
from vlatool.workflows.tokenizer_eval import TokenizerEvalConfig, tokenizer_eval
from vlatool.workflows.train import train
from vlatool.workflows.verify import InspectConfig, inspect
from vlatool.world.registration import ENVIRONMENT

Result = Mapping[str, Any]
_CHUNK = 1024  # bytes of a download
_TASK = "PutKiwiOnSaucer"
_DAMAGED_TABLE = "data/chunk-000/episode_000001.parquet"
_SAMPLED: tuple[Any, ...] = ("hdf5", "folder")  # formats that `sample` writes the world in
_RECORDED = ("zarr", "rlds", "mcap")  # formats that the tests write it in
_TIMES = ("samples_per_second", "step_ms", "data_wait", "memory_gb", "seconds", "stages")


@dataclass(frozen=True)
class Workspace:
    """Inputs and output of a command, the same in all cases because reports name them."""

    inputs: Path  # folder of `make_inputs`; never written to
    out: Path  # output folder
    remote: str = ""  # remote folder of a command that writes to `out` and there


@dataclass(frozen=True)
class Command:
    """Command to be killed."""

    name: str  # name, similar to the command line
    run: Callable[[Workspace], object]  # the run that is killed and repeated
    # Creates the state before the run.
    prepare: Callable[[Workspace], object] = lambda workspace: None
    result: Callable[[Path], Result] = contents  # returns the result that must be equal in the end
    is_remote: bool = False  # the command writes to S3
    has_journal: bool = False  # the journal stays in a complete output
    has_copy: bool = False  # the command also writes to `Workspace.remote`
    # The output is removed before the command is repeated; its copy stays.
    loses_machine: bool = False


def make_inputs(folder: Path) -> None:
    """Writes raw episodes, images, training data, windows with codes, tokenizers and a policy."""
    window_tree(folder / "pictures", episodes=2)
    world_shards(folder, episodes=2, frames=6)
    write_tree_codes(published_windows(folder / "windows", 2, 2), "packed")
    plain_fast(folder / "fast")
    tokenizer = write_tokenizer(folder / "tokenizer")
    frames = image_tree(folder / "frames", 2)
    encoded(frames, tokenizer, folder / "codes", layout="packed")
    image_shards(frames, folder / "shards")
    write_teacher(folder)
    write_stage_1(folder)
    train(tiny_config(folder / "data", folder / "policy", total_train_steps=1))
    libero_dataset(folder / "libero", (2, 1))
    for layout in _SAMPLED:
        _sample(Workspace(folder, folder / layout), layout)
    for layout in _RECORDED:
        record_world(layout, folder / layout, episodes=2, frames=3)
    repository = folder / "hub/lab/set"
    repository.mkdir(parents=True)
    for index in range(3):
        (repository / f"{index}.bin").write_bytes(bytes([index]) * (1 + index * _CHUNK))
    _write_raw_task(folder / "hub/lab/raw")
    table = lerobot_dataset(folder / "damaged", (6, 4)) / _DAMAGED_TABLE
    table.write_bytes(table.read_bytes()[:-8])


def _write_raw_task(folder: Path) -> None:
    """Writes an archive with a member of several chunks, small ones, and annotations."""
    folder.mkdir()
    with tarfile.open(folder / f"{_TASK}.tar", "w") as tar:
        for index, size in enumerate((10, 3 * _CHUNK + 1, 0, 300, 1500)):
            member = tarfile.TarInfo(f"tasks/{_TASK}/{index}/{index}.npz")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes([index]) * size))
    (folder / "annotations.yaml").write_text("language_dict: {}")
    (folder / "table.yaml").write_text("annotations: hf://datasets/lab/raw/annotations.yaml")


def bucket_digests(out: Path) -> Result:
    """Digests of the objects in S3."""
    files = digests(out)
    assert files, out
    return files


def run_files(out: Path) -> Result:
    """Files of a training run, without times."""
    files: dict[str, Any] = dict(contents(out))
    rows = files.pop("metrics.jsonl", b"").splitlines()
    return {**files, "metrics": [_without_times(json.loads(row)) for row in rows]}


def last_run_files(out: Path) -> Result:
    """Files of a training run, without times and earlier checkpoints."""
    files = run_files(out)
    steps = sorted({name.split("/")[1] for name in files if name.startswith("checkpoints/step_")})
    return {
        name: content
        for name, content in files.items()
        if not name.startswith(tuple(f"checkpoints/{step}/" for step in steps[:-1]))
    }


def rollout_files(out: Path) -> Result:
    """Files of rollouts without durations."""
    return {name: value for name, value in contents(out).items() if name != "timing.json"}


def demo_files(out: Path) -> Result:
    """Files of the demo without its page, which contains times."""
    parts = ("raw", "data")
    files = {part: contents(out / part) for part in parts}
    report = _without_times(json.loads((out / "report.json").read_text()))
    images = {path.name: path.read_bytes() for path in out.glob("*.png")}
    return {**files, **images, "run": run_files(out / "run"), "report": report}


def _without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith(_TIMES)}


def _encode(workspace: Workspace, **options: Any) -> None:
    tokenizer = str(workspace.inputs / "tokenizer")
    encoded(workspace.inputs / "frames", tokenizer, workspace.out, **options)


def _set_up_download() -> None:
    """Small chunks; each is synced, so that the steps do not depend on the time."""
    transfer.CHUNK = _CHUNK
    download_raw._SYNC_S = 0.0


def _download(workspace: Workspace) -> None:
    _set_up_download()
    with web_server(workspace.inputs / "hub") as server:
        os.environ["HF_ENDPOINT"] = server.endpoint
        source = "hf://datasets/lab/set"
        download(DownloadConfig(source=source, output=str(workspace.out), workers=1))


def _download_raw(workspace: Workspace, **options: Any) -> None:
    _set_up_download()
    hub = workspace.inputs / "hub"
    with web_server(hub) as server:
        os.environ |= {"HF_ENDPOINT": server.endpoint, "VLATOOL_REGISTRY": "hf://datasets/lab/raw"}
        keys = {"task": [_TASK], "raw": True, "workers": 1, **options}
        table = str(hub / "lab/raw/table.yaml")
        download(DownloadConfig(**keys, task_table=table, output=str(workspace.out)))


def _decode(workspace: Workspace) -> None:
    codes, tokenizer = str(workspace.inputs / "codes"), str(workspace.inputs / "tokenizer")
    decode(DecodeConfig(codes=codes, tokenizer=tokenizer, output=str(workspace.out)))


def _tokenizer_train(workspace: Workspace) -> None:
    """Stage 2 with a discriminator from the second step on, and averaged weights."""
    files = {name: f"{workspace.inputs}/{name}.safetensors" for name in ("teacher", "stage1")}
    keys: dict[str, Any] = {
        "model": {
            "type": "titok",
            "stage": 2,
            "teacher": files["teacher"],
            "init_weight": files["stage1"],
            "vqgan": NETWORK,
            **SIZES,
            "losses": {**LOSSES, "discriminator_start": 1},
        },
        "data.shards": [f"{workspace.inputs}/shards"],
        "data.preprocessing.crop_size": SIDE,
        "data.num_workers": 0,
        "save_path": str(workspace.out.parent),
        "name": workspace.out.name,
        "total_train_steps": 4,
        "log_every_n_steps": 1,
        "num_checkpoints": 2,
        "ema.enabled": True,
        "ema.type": "rising",
        "hparams.global_batch_size": 4,
        "hparams.per_gpu_batch_size": 4,
    }
    overrides = [Override(key, value, "kills") for key, value in keys.items()]
    train(load_config(TrainConfig, overrides=overrides).config)


def _tokenizer_eval(workspace: Workspace) -> None:
    keys = {"checkpoint": f"{workspace.inputs}/tokenizer", "data": f"{workspace.inputs}/shards"}
    tokenizer_eval(TokenizerEvalConfig(**keys, output=str(workspace.out), split="train"))


def _tokenizer_export(workspace: Workspace) -> None:
    source = f"{workspace.inputs}/tokenizer"
    tokenizer_export(TokenizerExportConfig(checkpoint=source, output=str(workspace.out)))


def _sample(workspace: Workspace, layout: Any = "spartan") -> None:
    sample(SampleConfig(layout=layout, output=str(workspace.out), episodes=2, frames=3, workers=1))


def _preprocess(workspace: Workspace, **options: Any) -> None:
    run(workspace.inputs / "raw", workspace.out, **options)


def _recording(workspace: Workspace, layout: str) -> None:
    run(workspace.inputs / layout, workspace.out, format=layout, fps=10)


def _windows(workspace: Workspace, **options: Any) -> None:
    convert(workspace.inputs / "libero", workspace.out, past_steps=2, future_steps=2, **options)


def _lerobot(workspace: Workspace, overwrite: bool = False, **sink: Any) -> None:
    tree = {"format": "libero", "sources": [str(workspace.inputs / "libero")], "workers": 1}
    tree |= {"output": str(workspace.out), "overwrite": overwrite}
    tree |= {"sink": {"type": "lerobot", "use_videos": True, **sink}}
    preprocess(config_of(PreprocessConfig, tree))


def _repair(workspace: Workspace) -> None:
    source = str(workspace.inputs / "damaged")
    repair(RepairConfig(source=source, output=str(workspace.out), workers=1))


def _curate(workspace: Workspace) -> None:
    keys = {"format": "hdf5", "sources": [f"{workspace.inputs}/hdf5"], "workers": 1}
    curate(config_of(CurateConfig, keys | {"output": str(workspace.out)}))


def _record(workspace: Workspace, form: Any) -> None:
    """Records until there are three episodes; a repeated call records the others."""
    with record(workspace.out, fps=10, form=form) as recorder:
        for number in range(recorder.episodes, 3):
            for step in range(4):
                image = np.full((16, 16, 3), 20 * number + step, np.uint8)
                recorder.add({"front": image}, state=np.full(2, step), action=np.full(2, step + 1))
            recorder.end_episode(instruction="pick")


def _images(workspace: Workspace, **options: Any) -> None:
    image_shards(workspace.inputs / "pictures", workspace.out, val_ratio=0.5, **options)


def _split(workspace: Workspace, val_ratio: float = 0.5) -> None:
    split(SplitConfig(shards=str(workspace.out), val_ratio=val_ratio))


def _merge(workspace: Workspace, **options: Any) -> None:
    target = str(workspace.out / "merged.json")
    stats_merge(
        StatsMergeConfig(sources=[f"{workspace.inputs}/data"] * 2, output=target, **options)
    )


def _published_shards(workspace: Workspace) -> None:
    shutil.copytree(workspace.inputs / "data" / "shards", workspace.out)
    for name in ("stats.json", "stats_digests.npz"):
        (workspace.out / name).unlink()


def _other_statistics(workspace: Workspace) -> None:
    _published_shards(workspace)
    for name in ("stats.json", "stats_digests.npz"):
        (workspace.out / name).write_text("{}")


def _compute(workspace: Workspace, **options: Any) -> None:
    stats_compute(StatsComputeConfig(data=str(workspace.out), workers=1, **options))


def _train(workspace: Workspace, **options: Any) -> None:
    budget = {"total_train_steps": 3, "num_checkpoints": 2}
    train(tiny_config(workspace.inputs / "data", workspace.out, **budget, **options))


def _train_synced(workspace: Workspace, **options: Any) -> None:
    _train(workspace, remote_sync=workspace.remote, **options)


def _lose_machine(workspace: Workspace) -> None:
    """Leaves the remote copy of a run at its first checkpoint, and no local folder."""
    _train_synced(workspace)
    shutil.rmtree(workspace.out)
    remote = RunDir(RemotePath(workspace.remote) / workspace.out.name)
    (first, _), (_, last) = remote.checkpoints()
    remove_tree(last)
    remote.write_latest(first)


def _compose(workspace: Workspace, **options: Any) -> None:
    compose(ComposeConfig(tiny=True, output=str(workspace.out), **options))


def _open_loop(workspace: Workspace, samples: int = 2) -> None:
    keys = {
        "checkpoint": f"{workspace.inputs}/policy",
        "data": f"{workspace.inputs}/data",
        "output": str(workspace.out),
    }
    open_loop(OpenLoopConfig(**keys, max_samples=samples))


def _predict(workspace: Workspace) -> None:
    keys = {"source": f"{workspace.inputs}/data", "output": str(workspace.out)}
    predict(PredictConfig(checkpoint=f"{workspace.inputs}/policy", **keys, inference_steps=1))


def _rollout(workspace: Workspace, seed: int = 0) -> None:
    keys = {"env": ENVIRONMENT, "episodes": 1, "max_steps": 2, "seed": seed}
    rollout(
        RolloutConfig(checkpoint=f"{workspace.inputs}/policy", output=str(workspace.out), **keys)
    )


def _fit_fast(workspace: Workspace, **options: Any) -> None:
    keys = {"sources": [f"{workspace.inputs}/data"], "output": str(workspace.out), "workers": 1}
    fit_fast(FitFastConfig(**keys, vocab_size=300, **options))


def _build(workspace: Workspace, **options: Any) -> None:
    keys = {"data": f"{workspace.inputs}/windows", "fast": str(workspace.inputs / "fast")}
    build_dataset(BuildDatasetConfig(**keys, output=str(workspace.out), **options))


def _export(workspace: Workspace) -> None:
    export(ExportConfig(source=f"{workspace.inputs}/windows/tokens", output=str(workspace.out)))


def _demo(workspace: Workspace) -> None:
    demo(DemoConfig(output=str(workspace.out), episodes=2, steps=2, rollouts=1))


def _resolve(workspace: Workspace) -> None:
    resolve_config(load_config(DemoConfig), output=str(workspace.out / "demo.yaml"))


def _page(workspace: Workspace) -> None:
    inspect(
        InspectConfig(location=f"{workspace.inputs}/data", html=str(workspace.out / "page.html"))
    )


def _overwriting(name: str, run: Callable[..., object], /, **earlier: Any) -> Command:
    """A command over the output of a run with other options."""
    return Command(f"{name} --overwrite", partial(run, overwrite=True), partial(run, **earlier))


def _in_s3(command: Command) -> Command:
    return replace(command, result=bucket_digests, is_remote=True)


SYNCED = Command("train --remote-sync", _train_synced, result=last_run_files, has_copy=True)
ROLLOUT = Command("eval rollout", _rollout, result=rollout_files)
COMMANDS = (
    Command("sample spartan", _sample),
    Command("sample lerobot", partial(_sample, layout="lerobot")),
    *(Command(f"sample {name}", partial(_sample, layout=name)) for name in _SAMPLED),
    *(
        Command(f"preprocess {name}", partial(_recording, layout=name))
        for name in (*_SAMPLED, *_RECORDED)
    ),
    Command("preprocess", _preprocess),
    Command("preprocess --no-keep-episodes", partial(_preprocess, keep_episodes=False)),
    _overwriting("preprocess", _preprocess, seed=7, jpeg_quality=50),
    _in_s3(Command("preprocess to S3", _preprocess)),
    _in_s3(_overwriting("preprocess to S3", _preprocess, seed=7)),
    Command("preprocess libero", _windows),
    _overwriting("preprocess libero", _windows, name="other", qa_mode="vla"),
    _in_s3(Command("preprocess libero to S3", _windows)),
    Command("preprocess to a LeRobot set", _lerobot),
    _overwriting("preprocess to a LeRobot set", _lerobot, layout_version="v2.1"),
    _in_s3(Command("preprocess to a LeRobot set in S3", _lerobot)),
    Command("preprocess images", _images),
    _overwriting("preprocess images", _images, image_format="jpeg"),
    Command("repair", _repair),
    Command("curate", _curate),
    Command("record frames", partial(_record, form="frames"), has_journal=True),
    Command("record a LeRobot set", partial(_record, form="lerobot"), has_journal=True),
    Command("split", _split, _images),
    Command("stats merge", _merge),
    Command("stats merge over an earlier one", _merge, partial(_merge, compact=True)),
    Command("stats compute", _compute, _published_shards),
    Command("stats compute --overwrite", partial(_compute, overwrite=True), _other_statistics),
    Command("tokenizer fit-fast", _fit_fast),
    _overwriting("tokenizer fit-fast", _fit_fast, scale=20),
    Command("compose", _compose),
    _overwriting("compose", _compose, seed=3),
    _in_s3(Command("tokenizer fit-fast to S3", _fit_fast)),
    Command("build-dataset", _build),
    Command("build-dataset --packed", partial(_build, packed=True)),
    Command("build-dataset --lines-per-file", partial(_build, lines_per_file=3)),
    _overwriting("build-dataset", _build, kinds=["wm"]),
    _in_s3(Command("build-dataset to S3", partial(_build, absolute=True))),
    Command("export of codes", _export),
    Command("encode", _encode),
    Command("encode --layout packed", partial(_encode, layout="packed")),
    _in_s3(Command("encode to S3", _encode)),
    Command("decode", _decode),
    Command("download", _download, has_journal=True),
    Command("download --raw", _download_raw, has_journal=True),
    Command(
        "download --raw --keep-archive", partial(_download_raw, keep_archive=True), has_journal=True
    ),
    _in_s3(Command("decode to S3", _decode)),
    Command("tokenizer train", _tokenizer_train, result=run_files),
    Command("tokenizer eval", _tokenizer_eval),
    _in_s3(Command("tokenizer eval to S3", _tokenizer_eval)),
    Command("tokenizer export", _tokenizer_export),
    _in_s3(Command("tokenizer export to S3", _tokenizer_export)),
    Command("train", _train, result=run_files),
    replace(_overwriting("train", _train, hparams__lr=0.5), result=run_files),
    replace(SYNCED, loses_machine=True),
    replace(SYNCED, name="train --remote-sync on a new machine", prepare=_lose_machine),
    Command("eval open-loop", _open_loop),
    Command("eval open-loop over an earlier one", _open_loop, partial(_open_loop, samples=1)),
    ROLLOUT,
    replace(ROLLOUT, name="eval rollout over an earlier one", prepare=partial(_rollout, seed=5)),
    Command("predict", _predict),
    Command("demo", _demo, result=demo_files),
    Command("resolve-config --output", _resolve),
    Command("inspect --html", _page),
)
