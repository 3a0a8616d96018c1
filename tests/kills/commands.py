"""The tiniest run of each command that writes, and what of it does not depend on being ended."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from tests.builders.encoding import encoded, image_tree, write_tokenizer
from tests.builders.images import image_shards, window_tree
from tests.builders.libero import convert, libero_dataset
from tests.builders.preprocessing import contents, run
from tests.builders.s3_runs import digests
from tests.builders.tokenizers import LOSSES, NETWORK, SIDE, SIZES, write_stage_1, write_teacher
from tests.builders.training import tiny_config, world_shards
from vlatool.config.overrides import Override
from vlatool.config.resolve import load_config
from vlatool.evaluation.config import OpenLoopConfig, RolloutConfig
from vlatool.training.config import TrainConfig
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.decode import DecodeConfig, decode
from vlatool.workflows.demo import DemoConfig, demo
from vlatool.workflows.evaluate import open_loop, rollout
from vlatool.workflows.export import ExportConfig, export
from vlatool.workflows.fit_fast import FitFastConfig, fit_fast
from vlatool.workflows.inspect import InspectConfig, inspect
from vlatool.workflows.resolve_config import resolve_config
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.split import SplitConfig, split
from vlatool.workflows.stats_merge import StatsMergeConfig, stats_merge
from vlatool.workflows.tokenizer_eval import TokenizerEvalConfig, tokenizer_eval
from vlatool.workflows.tokenizer_export import TokenizerExportConfig, tokenizer_export
from vlatool.workflows.train import train
from vlatool.world.registration import ENVIRONMENT

Result = Mapping[str, Any]
_TIMES = ("samples_per_second", "step_ms", "data_wait", "seconds", "stages")


@dataclass(frozen=True)
class Place:
    """Where a command runs, in one folder or bucket all the time: reports name it.

    Attributes:
        inputs: What `make_inputs` made; never written to.
        out: Where it writes.
    """

    inputs: Path
    out: Path

    @property
    def raw(self) -> Path:
        """Recordings."""
        return self.inputs / "raw"

    @property
    def data(self) -> Path:
        """Training data."""
        return self.inputs / "data"

    @property
    def windows(self) -> Path:
        """Windows, with codes of their pictures."""
        return self.inputs / "windows"

    @property
    def images(self) -> Path:
        """Pictures of two episodes."""
        return self.inputs / "pictures"

    @property
    def policy(self) -> Path:
        """A trained policy."""
        return self.inputs / "policy"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: As it is typed, roughly.
        run: The run that is ended and repeated.
        before: What is there when it begins.
        result: What is equal in the end.
        is_remote: Whether it writes to S3.
    """

    name: str
    run: Callable[[Place], object]
    before: Callable[[Place], object] = lambda place: None
    result: Callable[[Path], Result] = contents
    is_remote: bool = False


def make_inputs(folder: Path) -> None:
    """Recordings, pictures, training data, windows with codes, and a policy."""
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


def of_bucket(out: Path) -> Result:
    """Digests of what is in S3."""
    found = digests(out)
    assert found, out
    return found


def of_run(out: Path) -> Result:
    """A training run without times."""
    found: dict[str, Any] = dict(contents(out))
    rows = found.pop("metrics.jsonl", b"").splitlines()
    return {**found, "metrics": [_timeless(json.loads(row)) for row in rows]}


def of_demo(out: Path) -> Result:
    """The parts of the demo; its page tells times."""
    parts = ("raw", "data")
    found = {part: contents(out / part) for part in parts}
    report = _timeless(json.loads((out / "report.json").read_text()))
    images = {path.name: path.read_bytes() for path in out.glob("*.png")}
    return {**found, **images, "run": of_run(out / "run"), "report": report}


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith(_TIMES)}


def _encode(place: Place, **options: Any) -> None:
    tokenizer = str(place.inputs / "tokenizer")
    encoded(place.inputs / "frames", tokenizer, place.out, **options)


def _decode(place: Place) -> None:
    codes, tokenizer = str(place.inputs / "codes"), str(place.inputs / "tokenizer")
    decode(DecodeConfig(codes=codes, tokenizer=tokenizer, output=str(place.out)))


def _second_stage(place: Place) -> None:
    """With a discriminator from the second step on, and averages."""
    files = {name: f"{place.inputs}/{name}.safetensors" for name in ("teacher", "stage1")}
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
        "data.shards": [f"{place.inputs}/shards"],
        "data.preprocessing.crop_size": SIDE,
        "data.num_workers": 0,
        "save_path": str(place.out.parent),
        "name": place.out.name,
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


def _measured(place: Place) -> None:
    places = {"checkpoint": f"{place.inputs}/tokenizer", "data": f"{place.inputs}/shards"}
    tokenizer_eval(TokenizerEvalConfig(**places, output=str(place.out), split="train"))


def _published(place: Place) -> None:
    source = f"{place.inputs}/tokenizer"
    tokenizer_export(TokenizerExportConfig(checkpoint=source, output=str(place.out)))


def _sample(place: Place, layout: Any = "spartan") -> None:
    sample(SampleConfig(layout=layout, output=str(place.out), episodes=2, frames=3, workers=1))


def _preprocess(place: Place, **options: Any) -> None:
    run(place.raw, place.out, **options)


def _windows(place: Place, **options: Any) -> None:
    convert(place.inputs / "libero", place.out, past_steps=2, future_steps=2, **options)


def _images(place: Place, **options: Any) -> None:
    image_shards(place.images, place.out, val_ratio=0.5, **options)


def _split(place: Place, val_ratio: float = 0.5) -> None:
    split(SplitConfig(shards=str(place.out), val_ratio=val_ratio))


def _merge(place: Place, **options: Any) -> None:
    target = str(place.out / "merged.json")
    stats_merge(StatsMergeConfig(sources=[str(place.data)] * 2, output=target, **options))


def _train(place: Place, **options: Any) -> None:
    budget = {"total_train_steps": 3, "num_checkpoints": 2}
    train(tiny_config(place.data, place.out, **budget, **options))


def _open_loop(place: Place, samples: int = 2) -> None:
    places = {"checkpoint": str(place.policy), "data": str(place.data), "output": str(place.out)}
    open_loop(OpenLoopConfig(**places, max_samples=samples))


def _rollout(place: Place, seed: int = 0) -> None:
    wanted = {"env": ENVIRONMENT, "episodes": 1, "max_steps": 2, "seed": seed}
    rollout(RolloutConfig(checkpoint=str(place.policy), output=str(place.out), **wanted))


def _fit_fast(place: Place, **options: Any) -> None:
    given = {"sources": [str(place.data)], "output": str(place.out), "workers": 1}
    fit_fast(FitFastConfig(**given, vocab_size=300, **options))


def _build(place: Place, **options: Any) -> None:
    places = {"data": str(place.windows), "fast": str(place.inputs / "fast")}
    build_dataset(BuildDatasetConfig(**places, output=str(place.out), **options))


def _export(place: Place) -> None:
    export(ExportConfig(source=str(place.windows / "tokens"), output=str(place.out)))


def _demo(place: Place) -> None:
    demo(DemoConfig(output=str(place.out), episodes=2, steps=2, rollouts=1))


def _resolve(place: Place) -> None:
    resolve_config(load_config(DemoConfig), output=str(place.out / "demo.yaml"))


def _page(place: Place) -> None:
    inspect(InspectConfig(location=str(place.data), html=str(place.out / "page.html")))


COMMANDS = (
    Command("sample spartan", _sample),
    Command("sample lerobot", lambda place: _sample(place, "lerobot")),
    Command("preprocess", _preprocess),
    Command("preprocess --no-keep-episodes", lambda at: _preprocess(at, keep_episodes=False)),
    Command(
        "preprocess --overwrite",
        lambda place: _preprocess(place, overwrite=True),
        lambda place: _preprocess(place, seed=7, jpeg_quality=50),
    ),
    Command("preprocess to S3", _preprocess, result=of_bucket, is_remote=True),
    Command(
        "preprocess to S3 --overwrite",
        lambda place: _preprocess(place, overwrite=True),
        lambda place: _preprocess(place, seed=7),
        of_bucket,
        is_remote=True,
    ),
    Command("preprocess libero", _windows),
    Command(
        "preprocess libero --overwrite",
        lambda place: _windows(place, overwrite=True, qa_mode="vla"),
        lambda place: _windows(place, name="other"),
    ),
    Command("preprocess libero to S3", _windows, result=of_bucket, is_remote=True),
    Command("preprocess images", _images),
    Command(
        "preprocess images --overwrite",
        lambda place: _images(place, overwrite=True),
        lambda place: _images(place, image_format="jpeg"),
    ),
    Command("split", _split, _images),
    Command("stats merge", _merge),
    Command("stats merge over an earlier one", _merge, lambda at: _merge(at, compact=True)),
    Command("tokenizer fit-fast", _fit_fast),
    Command(
        "tokenizer fit-fast --overwrite",
        lambda place: _fit_fast(place, overwrite=True),
        lambda place: _fit_fast(place, scale=20),
    ),
    Command("tokenizer fit-fast to S3", _fit_fast, result=of_bucket, is_remote=True),
    Command("build-dataset", _build),
    Command("build-dataset --packed", lambda place: _build(place, packed=True)),
    Command("build-dataset --lines-per-file", lambda place: _build(place, lines_per_file=3)),
    Command(
        "build-dataset --overwrite",
        lambda place: _build(place, overwrite=True),
        lambda place: _build(place, kinds=["wm"]),
    ),
    Command(
        "build-dataset to S3",
        lambda place: _build(place, absolute=True),
        result=of_bucket,
        is_remote=True,
    ),
    Command("export of codes", _export),
    Command("encode", _encode),
    Command("encode --layout packed", lambda place: _encode(place, layout="packed")),
    Command("encode to S3", _encode, result=of_bucket, is_remote=True),
    Command("decode", _decode),
    Command("decode to S3", _decode, result=of_bucket, is_remote=True),
    Command("tokenizer train", _second_stage, result=of_run),
    Command("tokenizer eval", _measured),
    Command("tokenizer eval to S3", _measured, result=of_bucket, is_remote=True),
    Command("tokenizer export", _published),
    Command("tokenizer export to S3", _published, result=of_bucket, is_remote=True),
    Command("train", _train, result=of_run),
    Command(
        "train --overwrite",
        lambda place: _train(place, overwrite=True),
        lambda place: _train(place, hparams__lr=0.5),
        of_run,
    ),
    Command("eval open-loop", _open_loop),
    Command("eval open-loop over an earlier one", _open_loop, lambda at: _open_loop(at, 1)),
    Command("eval rollout", _rollout),
    Command("eval rollout over an earlier one", _rollout, lambda place: _rollout(place, 5)),
    Command("demo", _demo, result=of_demo),
    Command("resolve-config --output", _resolve),
    Command("inspect --html", _page),
)
