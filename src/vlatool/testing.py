"""Contract checks for authors of dataset formats and model types: one line in their tests.

    check_reader(AcmeReader, "tests/data/acme")
    check_model_type(AcmeType, {"width": 32})

Each raises an AssertionError that says in a sentence which promise is broken. The promises are
those of `vlatool.sources.base.FormatReader` and `vlatool.models.base.ModelType`.
Legend of shapes: F frames, N frames asked for, B samples of a batch, T steps, A width of an action.
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError
from vlatool.loading.config import DataConfig
from vlatool.loading.decode import DecodedSample
from vlatool.loading.facts import DatasetFacts, derive_data
from vlatool.loading.normalizer import Normalizer
from vlatool.sources.order import natural_key
from vlatool.transforms.relative import SUFFIX

_ID = re.compile(r"[A-Za-z0-9_-]+")
_WIDTHS = {"action": 4, "state": 3}
_PAST, _FUTURE, _SAMPLES = 1, 6, 8
_FALL = 0.8


def check_reader(
    reader_class: Any, source: str | Path, config: Mapping[str, Any] | None = None
) -> list[Episode]:
    """The episodes of a small data set, after checking that the reader keeps its promises.

    Args:
        reader_class: The class that the entry point names.
        source: A folder with a few short episodes; all of them are read.
        config: Keys of the reader's config that differ from its defaults.
    """
    keys = _config(reader_class, config)
    reader, again = reader_class(keys), reader_class(pickle.loads(pickle.dumps(keys)))  # noqa: S301 - our own bytes
    refs = list(reader.discover([Path(source)]))
    assert refs, f"discover finds no episode in {source}"
    assert refs == list(again.discover([Path(source)])), "discover differs from run to run"
    _check_refs(refs)
    for code, message in reader.warnings:
        assert isinstance(code, str) and isinstance(message, str), "a warning is (code, message)"  # noqa: PT018 - one promise
    _check_empty_source(reader_class(keys))
    # Workers read with a reader of their own, which has discovered nothing.
    episodes = [reader_class(keys).read(_pickled(ref)) for ref in refs]
    for ref, episode in zip(refs, episodes, strict=True):
        assert episode.id == ref.id, f"read gives the id {episode.id!r} for the ref {ref.id!r}"
        _check_episode(episode)
    return episodes


def check_model_type(model_type_class: Any, config: Mapping[str, Any] | None = None) -> None:
    """Checks a model type on eight made-up samples: it is built, learns them, and is saved.

    Args:
        model_type_class: The class that the entry point names.
        config: Keys that differ from the defaults; choose a tiny network. The samples have one
            camera of 32 x 32 pixels, 4 numbers of action and 3 of proprioception.
    """
    _check_light_import(model_type_class)
    section, model_type = _config(model_type_class, config), model_type_class()
    default = section.model_dump().get("type")
    assert default == model_type.name, f"Config.type is {default!r}, name is {model_type.name!r}"
    facts = _facts()
    data = derive_data(DataConfig(), facts)
    derived, rules = model_type.derive(section, data, facts)
    for key in rules:
        assert _has_key(derived, key), f"derive reports the key {key!r}, which Config has not"
    assert model_type.derive(derived, data, facts)[0] == derived, "derive changes what it derived"
    normalizer = Normalizer(data, facts.statistics, facts.statistics_past)
    batcher = model_type.batcher(derived, data, normalizer)
    batch = batcher(_samples())
    _check_batch(batch, _pickled(batcher)(_samples()))
    _check_learning(model_type, derived, batch)
    if hasattr(model_type, "act"):
        _check_act(model_type, derived, batch)


def _config(plugin_class: Any, keys: Mapping[str, Any] | None) -> Any:
    kind = plugin_class.Config
    assert issubclass(kind, ConfigModel), "Config is no vlatool.config.base.ConfigModel"
    for name, field in kind.model_fields.items():
        assert field.description, f"the key {name!r} has no description, which --help shows"
    return kind.model_validate(dict(keys or {}))


def _pickled(value: Any) -> Any:
    try:
        return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"{type(value).__name__} cannot be pickled: {error}") from error


def _check_refs(refs: list[EpisodeRef]) -> None:
    ids = [ref.id for ref in refs]
    for name in ids:
        assert _ID.fullmatch(name), f"the id {name!r} has more than letters, digits, _ and -"
    assert len(set(ids)) == len(ids), "two episodes have the same id"
    paths = [natural_key(ref.path) for ref in refs]
    numbers = [-1 if ref.number is None else ref.number for ref in refs]
    ordered = paths == sorted(paths) or (min(numbers) >= 0 and numbers == sorted(numbers))
    assert ordered, "discover does not give episodes in natural order: episode_2 before episode_10"
    assert [_pickled(ref) for ref in refs] == refs, "refs change when they are pickled"


def _check_empty_source(reader: Any) -> None:
    with tempfile.TemporaryDirectory() as empty:
        try:
            list(reader.discover([Path(empty)]))
        except DataError as error:
            assert error.code == "data.no_episodes", f"an empty source gives the code {error.code}"
        else:
            raise AssertionError("discover accepts an empty folder instead of raising DataError")


def _check_episode(episode: Episode) -> None:
    where, frames = f"episode {episode.id}", episode.num_frames
    assert frames > 0, f"{where} has no frames"
    assert episode.fps > 0, f"{where} has {episode.fps} frames per second"
    for name, values in episode.lowdim.items():
        _check_field(f"{where}, field {name!r}", values, frames)
    for name, camera in episode.cameras.items():
        _check_camera(f"{where}, camera {name!r}", camera, frames)
    for group in episode.pose_groups:
        for key, width in ((group.position_key, 3), (group.rotation_key, 6)):
            shape = getattr(episode.lowdim.get(key), "shape", None)
            assert shape == (frames, width), (
                f"{where}: the pose {key!r} is {shape}, not [F, {width}]"
            )
    poses = {key for one in episode.pose_groups for key in (one.position_key, one.rotation_key)}
    offered = {*episode.lowdim, *(key + SUFFIX for key in poses)}
    for name in (*episode.action_fields, *episode.proprioception_fields):
        assert name in offered, f"{where}: {name!r} is neither in lowdim nor a pose with {SUFFIX!r}"
    for kind, sentences in episode.language.items():
        texts = [] if isinstance(sentences, str) else list(sentences)
        assert texts, f"{where}: language {kind!r} is not a list of sentences"
        assert all(isinstance(one, str) for one in texts), f"{where}: {kind!r} has more than text"
    for name, values in episode.frame_metadata.items():
        assert len(values) == frames, f"{where}: frame_metadata {name!r} is not one per frame"
    unknown = sorted(episode.calibration.keys() - episode.cameras.keys())
    assert not unknown, f"{where}: calibration of cameras that are not there: {unknown}"


def _check_field(where: str, values: Any, frames: int) -> None:
    assert isinstance(values, np.ndarray), f"{where} is a {type(values).__name__}, no array"
    assert values.dtype.kind in "fiubU", f"{where} is {values.dtype}, neither numbers nor unicode"
    dimensions = 1 if values.dtype.kind == "U" else 2
    assert values.ndim == dimensions, f"{where} has shape {values.shape}, not [F, C] (text [F])"
    assert len(values) == frames, f"{where} has {len(values)} rows, the episode {frames} frames"
    finite = values.dtype.kind != "f" or bool(np.isfinite(values).all())
    assert finite, f"{where} has values that are not finite; read must raise DataError for them"


def _check_camera(where: str, camera: FrameSource, frames: int) -> None:
    assert len(camera) == frames, f"{where} has {len(camera)} pictures, the episode {frames} frames"
    last = camera.read([frames - 1])
    first = camera.read([0])
    for pictures in (first, last):
        assert pictures.dtype == np.uint8, f"{where} gives {pictures.dtype}, not uint8"
        expected = (1, *camera.size, 3)
        assert pictures.shape == expected, f"{where} gives {pictures.shape}, not {expected}"
    both = camera.read([0, frames - 1])
    same = np.array_equal(both, np.concatenate([first, last]))
    assert same, f"{where} gives other pictures when frames are read in another order"


def _check_light_import(model_type_class: Any) -> None:
    """In a process of its own, because this one may have torch already."""
    module = model_type_class.__module__
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert done.returncode == 0, f"importing {module} fails or imports torch; do so in its methods"


def _facts() -> DatasetFacts:
    """Facts as a folder of shards would give them."""
    steps = _PAST + 1 + _FUTURE
    statistics = {}
    for name, width in _WIDTHS.items():
        entry = {"mean": 0.0, "std": 1.0, "min": -3.0, "max": 3.0}
        entry |= {"percentile_1": -2.0, "percentile_5": -1.5, "percentile_95": 1.5}
        entry["percentile_99"] = 2.0
        rows = {key: [value] * width for key, value in entry.items()}
        statistics[name] = rows | {f"{key}_per_timestep": [rows[key]] * steps for key in rows}
    options = {"camera_names": ["front"], "image_indices": [0], "action_fields": ["action"]}
    options |= {"proprioception_fields": ["state"], "fps": 10}
    return DatasetFacts(((),), statistics, (options,), _PAST, _FUTURE, _PAST)


def _samples() -> list[DecodedSample]:
    """Smooth curves that each start where the state is; the last chunk ends in padding."""
    rng, steps = np.random.default_rng(0), _PAST + 1 + _FUTURE
    samples: list[DecodedSample] = []
    for number in range(_SAMPLES):
        time = np.arange(steps) - _PAST
        fields = {
            name: np.sin(rng.uniform(-3, 3, width) + 0.2 * time[:, None])
            for name, width in _WIDTHS.items()
        }
        real = time < (_FUTURE if number == _SAMPLES - 1 else steps)
        samples.append(
            DecodedSample(
                key=f"sample-{number}",
                images=rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8),
                fields=fields,
                past_mask=real & (time < 0),
                future_mask=real & (time >= 0),
                instruction=f"do thing {number}",
                metadata={},
            )
        )
    return samples


def _has_key(config: Any, key: str) -> bool:
    for part in key.split("."):
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


def _check_batch(batch: Any, other: Any) -> None:
    import torch

    assert isinstance(batch, dict), "the batcher does not return a dict"
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            count = value.shape[:1]
            assert count == (_SAMPLES,), f"batch[{name!r}] is {tuple(value.shape)}, not [B, ...]"
            assert torch.equal(value, other[name]), (
                f"batch[{name!r}] changes with a pickled batcher"
            )


def _check_learning(model_type: Any, config: Any, batch: dict[str, Any]) -> None:
    import torch

    from vlatool.training.config import HParams
    from vlatool.training.optim import build_optimizer

    def build() -> Any:
        torch.manual_seed(0)
        return model_type.build(config)

    def measure() -> float:
        with torch.no_grad():
            losses = [loss(turn, seed) for turn in turns for seed in range(4)]
        return float(sum(one.total / one.count for one in losses) / len(losses))

    def loss(turn: str, seed: int) -> Any:
        value = objective.loss(turn, batch, torch.Generator().manual_seed(seed))
        assert torch.isfinite(value.total), f"the loss of {turn!r} is {float(value.total)}"
        assert value.count > 0, f"the loss of {turn!r} counts no element"
        return value

    model = build()
    objective = model_type.objective(config, model)
    modules, turns = objective.optimizers(), list(dict.fromkeys(objective.turns(0)))
    assert turns and set(turns) <= set(modules), f"turns {turns} are not optimizers {list(modules)}"  # noqa: PT018 - one promise
    assert loss(turns[0], 0).total.requires_grad, "the loss has no gradient"
    _check_round_trip(model, build)
    optimizers = {name: build_optimizer(part, HParams(lr=3e-3)) for name, part in modules.items()}
    before = measure()
    model.train()
    for step in range(60):
        for turn in objective.turns(step):
            optimizers[turn].zero_grad()
            value = loss(turn, 100 + step)
            (value.total / value.count).backward()
            optimizers[turn].step()
    after = measure()
    assert after < _FALL * before, f"60 steps on one batch take the loss from {before} to {after}"
    _check_round_trip(model, build)


def _check_round_trip(model: Any, build: Callable[[], Any]) -> None:
    import torch
    from safetensors.torch import save_file

    from vlatool.models.weights import load_weights

    fresh, state = build(), model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        load_weights(fresh, path)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} changes when it is saved and loaded"


def _check_act(model_type: Any, config: Any, batch: dict[str, Any]) -> None:
    import torch

    torch.manual_seed(0)
    model = model_type.build(config).eval()
    first, second = (
        model_type.act(model, batch, steps=3, rng=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    expected = (_SAMPLES, _PAST + 1 + _FUTURE, _WIDTHS["action"])
    assert tuple(first.shape) == expected, f"act gives {tuple(first.shape)}, not [B, T, A]"
    assert bool(torch.isfinite(first).all()), "act gives actions that are not finite"
    assert torch.equal(first, second), "act draws randomness from elsewhere than rng"
