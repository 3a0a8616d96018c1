"""A third-party distribution `acme_vla` with a format, two model types, a data kind; and its data.

It is found like an installed distribution: a folder on the import path with a package and a
`.dist-info`.
"""

import json
from pathlib import Path

import numpy as np

METADATA = "Metadata-Version: 2.1\nName: acme_vla\nVersion: 0.1\n"
ENTRY_POINTS = """\
[vlatool.formats]
acme = acme_vla.reader:AcmeReader

[vlatool.models]
acme_mlp = acme_vla.spec:AcmeMlpType
acme_line = acme_vla.line:AcmeLineType
"""
READER = '''\
"""Episodes as folders with meta.json, action.npy, state.npy and one .npy of images per camera."""

import json

import numpy as np
from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError
from vlatool.sources.base import FormatReader, id_part, no_episodes, survey_by_reading
from vlatool.sources.base import unique_refs
from vlatool.storage.tree import natural_key


class AcmeConfig(ConfigModel):
    camera: str = Field("wrist", description="Name of the file with the images.")


class NpyFrames(FrameSource):
    def __init__(self, path):
        self._frames = np.load(path, mmap_mode="r")

    def __len__(self):
        return len(self._frames)

    @property
    def size(self):
        return self._frames.shape[1:3]

    def read(self, indices):
        return np.array(self._frames[list(indices)])


class AcmeReader(FormatReader):
    Config = AcmeConfig

    def __init__(self, config):
        self.config = config

    def discover(self, sources):
        for source in sources:
            paths = sorted(source.rglob("meta.json"), key=natural_key)
            if not paths:
                raise no_episodes(source, "meta.json")
            yield from unique_refs(
                [EpisodeRef(id_part(path.parent.name), path.parent, str(source)) for path in paths]
            )

    def survey(self, refs):
        return survey_by_reading(self.read, refs)

    def read(self, ref):
        meta = json.loads((ref.path / "meta.json").read_text())
        action, state = np.load(ref.path / "action.npy"), np.load(ref.path / "state.npy")
        images = ref.path / f"{self.config.camera}.npy"
        if not images.is_file():
            raise DataError(f"{images} is missing", code="data.missing_file")
        return Episode(
            id=ref.id,
            task=meta["task"],
            fps=meta["fps"],
            num_frames=len(action),
            cameras={self.config.camera: NpyFrames(images)},
            lowdim={"action": action, "state": state},
            language={"original": [meta["text"]]},
            action_fields=("action",),
            proprioception_fields=("state",),
        )
'''
SPEC = '''\
"""A linear map from proprioception to an action chunk; no torch."""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel, derived_field
from vlatool.models.base import ModelType, Part


class AcmeMlpConfig(ConfigModel):
    type: Literal["acme_mlp"] = Field("acme_mlp", description="Model type.")
    bias: bool = Field(True, description="Add a constant.")
    inputs: int | None = derived_field("steps times data.proprioception_dim", "Width of the input.")
    steps: int | None = derived_field("steps of a window", "Steps of an action chunk.")
    action_dim: int | None = derived_field("data.action_dim", "Width of an action.")


class AcmeMlpType(ModelType):
    name: ClassVar[str] = "acme_mlp"
    Config: ClassVar[type[AcmeMlpConfig]] = AcmeMlpConfig
    kinds = ("robotics",)

    def derive(self, config, data, info):
        past, future = data.lowdim_past_timesteps, data.lowdim_future_timesteps
        update = {
            "inputs": (past + 1) * data.proprioception_dim,
            "steps": past + 1 + future,
            "action_dim": data.action_dim,
        }
        return config.model_copy(update=update), dict.fromkeys(update, "data")

    def build(self, config):
        from acme_vla.model import AcmeMlp

        return {"model": Part(AcmeMlp(config))}

    def objective(self, config, data, info, parts):
        from acme_vla.model import AcmeObjective

        return AcmeObjective()

    def batcher(self, config, data, assets, folder, *, training):
        from acme_vla.model import AcmeBatcher

        return AcmeBatcher(data, assets.normalizer)

    def example(self, config, data, size):
        from acme_vla.model import example

        return example(config, size)

    def policy(self, config, parts, assets, folder):
        from acme_vla.model import AcmeBatcher, predict
        from vlatool.models.policy import RoboticsPolicy

        batcher = AcmeBatcher(assets.data, assets.normalizer)
        return RoboticsPolicy(partial(predict, parts["model"]), batcher, assets)
'''
MODEL = """\
import numpy as np
import torch
from torch import nn

from vlatool.models.base import Loss, Objective, OptimizerSpec


class AcmeMlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.shape = (config.steps, config.action_dim)
        self.map = nn.Linear(config.inputs, config.steps * config.action_dim, bias=config.bias)

    def forward(self, state):
        return self.map(state).unflatten(1, self.shape)


class AcmeObjective(Objective):
    def optimizers(self):
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer, batch, ctx):
        predicted = ctx.parts["model"](batch["state"])
        error = (predicted.float() - batch["actions"]).abs() * batch["mask"][..., None]
        return Loss(error.sum(), batch["mask"].sum() * error.shape[-1])


class AcmeBatcher:
    def __init__(self, data, normalizer):
        self.data, self.normalizer = data, normalizer

    def stack(self, samples, fields, steps):
        parts = [
            self.normalizer.normalize(name, np.stack([s.fields[name][:steps] for s in samples]))
            for name in fields
        ]
        return torch.from_numpy(np.concatenate(parts, axis=-1))

    def __call__(self, samples):
        past = self.data.lowdim_past_timesteps
        return {
            "state": self.stack(samples, self.data.proprioception_fields, past + 1).flatten(1),
            "actions": self.stack(samples, self.data.action_fields, None),
            "mask": torch.from_numpy(np.stack([sample.future_mask for sample in samples])),
        }


def example(config, size):
    waves = torch.sin(torch.arange(size * config.inputs).float()).unflatten(0, (size, -1))
    return {
        "state": waves,
        "actions": waves.mean(1)[:, None, None].repeat(1, config.steps, config.action_dim),
        "mask": torch.ones(size, config.steps, dtype=torch.bool),
    }


def predict(model, batch, *, steps, rng):
    return model(batch["state"]).detach()
"""
KIND = '''\
"""Data kind of single steps of acme episodes, read without preprocessing."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from vlatool.errors import DataError
from vlatool.loading.base import (
    DataKind,
    DataSet,
    DroppedSample,
    LoadingConfig,
    SampleReader,
    ShardInfo,
)
from vlatool.storage.tree import natural_key

SCALE = "acme_scale.json"


class AcmeStepsConfig(LoadingConfig):
    # Locations do not affect the weights; the fingerprint covers the content.
    no_effect_on_output: ClassVar = LoadingConfig.no_effect_on_output | {"folders", "val_folders"}

    type: Literal["acme_steps"] = Field("acme_steps", description="Data kind.")
    folders: list[str] = Field([], description="Folders of episodes.")
    val_folders: list[str] = Field([], description="Folders of validation episodes.")


@dataclass(frozen=True)
class Step:
    key: str
    state: np.ndarray
    action: np.ndarray


@dataclass(frozen=True)
class AcmeInfo:
    datasets: tuple
    digest: str
    scale: float

    @property
    def fingerprint(self):
        return {"acme steps": self.digest}


@dataclass(frozen=True)
class AcmeStepsReader(SampleReader):
    datasets: tuple

    def read(self, refs, rngs):
        return [self.step(ref) for ref in refs]

    def step(self, ref):
        folder = self.datasets[ref.dataset].shards[ref.shard].location
        key = f"{folder.name}-{ref.sample}"
        state = np.load(folder / "state.npy", mmap_mode="r")[ref.sample]
        action = np.load(folder / "action.npy", mmap_mode="r")[ref.sample]
        if not np.isfinite(state).all():
            return DroppedSample("no_number", key, f"{key}: the state is NaN")
        return Step(key, np.array(state), np.array(action))


class AcmeKind(DataKind):
    name: ClassVar[str] = "acme_steps"
    Config: ClassVar = AcmeStepsConfig
    folders_keys: ClassVar = ("folders",)
    drop_reasons: ClassVar = ("no_number",)

    def load_info(self, config, reporter):
        digest, states = hashlib.sha256(), []
        datasets = tuple(self.dataset(Path(path), digest, states) for path in config.folders)
        if not states:
            raise DataError("folders has no acme episode", code="data.no_dataset")
        scale = float(np.nanstd(np.concatenate(states)))
        return AcmeInfo(datasets, digest.hexdigest(), scale)

    def dataset(self, folder, digest, states):
        shards = []
        for meta in sorted(folder.glob("*/meta.json"), key=natural_key):
            state = np.load(meta.parent / "state.npy")
            digest.update(state.tobytes())
            digest.update((meta.parent / "action.npy").read_bytes())
            states.append(state)
            shards.append(ShardInfo(meta.parent, len(state)))
        return DataSet(folder.name, tuple(shards))

    def validation(self, config):
        changes = {"folders": config.val_folders, "val_folders": []}
        return config.model_copy(update=changes) if config.val_folders else None

    def derive(self, config, info):
        return config, {}

    def reader(self, config, info):
        return AcmeStepsReader(info.datasets)

    def make_assets(self, config, info):
        return info.scale

    def save_assets(self, config, info, folder):
        (folder / SCALE).write_text(json.dumps(info.scale))

    def load_assets(self, config, folder):
        return json.loads((folder / SCALE).read_text())
'''
LINE = '''\
"""Model type from state to action of one step, for the data kind of acme_vla."""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.models.base import ModelType, Part


class AcmeLineConfig(ConfigModel):
    type: Literal["acme_line"] = Field("acme_line", description="Model type.")


class AcmeLineType(ModelType):
    name: ClassVar[str] = "acme_line"
    Config: ClassVar[type[AcmeLineConfig]] = AcmeLineConfig
    kinds = ("acme_vla.kind:AcmeKind",)

    def build(self, config):
        from torch import nn

        return {"model": Part(nn.Linear(3, 2))}

    def objective(self, config, data, info, parts):
        from acme_vla.line_objective import LineObjective

        return LineObjective()

    def batcher(self, config, data, assets, folder, *, training):
        from acme_vla.line_objective import batch

        return partial(batch, assets)

    def example(self, config, data, size):
        from acme_vla.line_objective import example

        return example(size)
'''
LINE_OBJECTIVE = """\
import numpy as np
import torch

from vlatool.models.base import Loss, Objective, OptimizerSpec


class LineObjective(Objective):
    def optimizers(self):
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer, batch, ctx):
        error = (ctx.parts["model"](batch["state"]).float() - batch["action"]).abs()
        return Loss(error.sum(), torch.tensor(error.numel()))

    def metrics(self, phase, sums, count):
        return {"numbers": count}


def batch(scale, samples):
    stacked = {
        "state": np.stack([sample.state for sample in samples]) / scale,
        "action": np.stack([sample.action for sample in samples]) / scale,
    }
    return {name: torch.from_numpy(value).float() for name, value in stacked.items()}


def example(size):
    state = torch.sin(torch.arange(size * 3).float()).unflatten(0, (size, 3))
    return {"state": state, "action": 2 * state[:, :2]}
"""
PRESET = """\
# The linear model of acme_vla.
model: {type: acme_mlp, bias: false}
hparams: {precision: float32, global_batch_size: 8, per_gpu_batch_size: 8, lr: 0.05}
data: {allow_multiple_epochs: true, num_workers: 0}
"""


def acme_distribution(root: Path) -> Path:
    """Writes the package and its metadata; returns `root`, to be put on the import path."""
    files = {
        "acme_vla/__init__.py": "",
        "acme_vla/reader.py": READER,
        "acme_vla/spec.py": SPEC,
        "acme_vla/model.py": MODEL,
        "acme_vla/kind.py": KIND,
        "acme_vla/line.py": LINE,
        "acme_vla/line_objective.py": LINE_OBJECTIVE,
        "acme_vla/presets/runs/acme-linear.yaml": PRESET,
        "acme_vla-0.1.dist-info/METADATA": METADATA,
        "acme_vla-0.1.dist-info/entry_points.txt": ENTRY_POINTS,
    }
    return _write(root, files)


def hostile_distribution(root: Path) -> Path:
    """Writes a distribution with a module that fails to import and a name that is taken."""
    files = {
        "hostile_vla/__init__.py": "raise RuntimeError('no licence found')\n",
        "hostile_vla-2.dist-info/METADATA": METADATA.replace("acme_vla", "hostile_vla"),
        "hostile_vla-2.dist-info/entry_points.txt": "[vlatool.formats]\n"
        "broken = hostile_vla:Reader\nspartan = hostile_vla:Reader\n",
    }
    return _write(root, files)


def acme_data(root: Path, episodes: int = 3, frames: int = 8) -> Path:
    """Writes episodes whose action is twice the state; returns `root`."""
    rng = np.random.default_rng(0)
    for number in range(episodes):
        folder = root / f"episode_{number}"
        folder.mkdir(parents=True)
        state = rng.normal(size=(frames, 3)).cumsum(axis=0)
        np.save(folder / "state.npy", state)
        np.save(folder / "action.npy", 2 * state[:, :2])
        np.save(folder / "front.npy", rng.integers(0, 256, (frames, 16, 20, 3), dtype=np.uint8))
        meta = {"task": "PushBlock", "fps": 10, "text": "push the block"}
        (folder / "meta.json").write_text(json.dumps(meta))
    return root


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
