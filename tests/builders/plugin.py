"""A third-party distribution `acme_vla` with a format and a model type, and data of that format.

It is found as an installed one is: a folder on the path with a package and a `.dist-info`.
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
"""
READER = '''\
"""Episodes as folders with meta.json, action.npy, state.npy and one .npy of pictures per camera."""

import json

import numpy as np
from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.sources.base import id_part, no_episodes, survey_by_reading
from vlatool.sources.order import natural_key, unique_refs


class AcmeConfig(ConfigModel):
    camera: str = Field("wrist", description="Name of the file with the pictures.")


class NpyFrames:
    def __init__(self, path):
        self._frames = np.load(path, mmap_mode="r")

    def __len__(self):
        return len(self._frames)

    @property
    def size(self):
        return self._frames.shape[1:3]

    def read(self, indices):
        return np.array(self._frames[list(indices)])


class AcmeReader:
    Config = AcmeConfig

    def __init__(self, config):
        self.config = config

    def discover(self, sources):
        for source in sources:
            found = sorted(source.rglob("meta.json"), key=natural_key)
            if not found:
                raise no_episodes(source, "meta.json")
            yield from unique_refs(
                [EpisodeRef(id_part(meta.parent.name), meta.parent, str(source)) for meta in found]
            )

    def survey(self, refs):
        return survey_by_reading(self.read, refs)

    def read(self, ref):
        meta = json.loads((ref.path / "meta.json").read_text())
        action, state = np.load(ref.path / "action.npy"), np.load(ref.path / "state.npy")
        pictures = ref.path / f"{self.config.camera}.npy"
        if not pictures.is_file():
            raise DataError(f"{pictures} is missing", code="data.missing_file")
        return Episode(
            id=ref.id,
            task=meta["task"],
            fps=meta["fps"],
            num_frames=len(action),
            cameras={self.config.camera: NpyFrames(pictures)},
            lowdim={"action": action, "state": state},
            language={"original": [meta["text"]]},
            action_fields=("action",),
            proprioception_fields=("state",),
        )
'''
SPEC = '''\
"""A linear map from proprioception to a chunk of actions; light, no torch."""

from typing import ClassVar, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel, derived_field


class AcmeMlpConfig(ConfigModel):
    type: Literal["acme_mlp"] = Field("acme_mlp", description="Model type.")
    bias: bool = Field(True, description="Add a constant.")
    inputs: int | None = derived_field("steps times data.proprioception_dim", "Numbers seen.")
    steps: int | None = derived_field("steps of a window", "Length of a chunk.")
    action_dim: int | None = derived_field("data.action_dim", "Width of an action.")


class AcmeMlpType:
    name: ClassVar[str] = "acme_mlp"
    Config: ClassVar[type[AcmeMlpConfig]] = AcmeMlpConfig

    def derive(self, config, data, facts):
        past, future = data.lowdim_past_timesteps, data.lowdim_future_timesteps
        update = {
            "inputs": (past + 1) * data.proprioception_dim,
            "steps": past + 1 + future,
            "action_dim": data.action_dim,
        }
        return config.model_copy(update=update), dict.fromkeys(update, "data")

    def build(self, config):
        from acme_vla.model import AcmeMlp

        return AcmeMlp(config)

    def objective(self, config, model):
        from acme_vla.model import AcmeObjective

        return AcmeObjective(model)

    def batcher(self, config, data, normalizer):
        from acme_vla.model import AcmeBatcher

        return AcmeBatcher(data, normalizer)

    def act(self, model, batch, *, steps, rng):
        return model(batch["state"]).detach()
'''
MODEL = """\
import numpy as np
import torch
from torch import nn

from vlatool.models.base import Loss


class AcmeMlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.shape = (config.steps, config.action_dim)
        self.map = nn.Linear(config.inputs, config.steps * config.action_dim, bias=config.bias)

    def forward(self, state):
        return self.map(state).unflatten(1, self.shape)


class AcmeObjective:
    def __init__(self, model):
        self.model = model

    def optimizers(self):
        return {"main": self.model}

    def turns(self, step):
        return ("main",)

    def loss(self, turn, batch, rng):
        error = (self.model(batch["state"]) - batch["actions"]).abs() * batch["mask"][..., None]
        return Loss(error.sum(), batch["mask"].sum() * error.shape[-1])


class AcmeBatcher:
    def __init__(self, data, normalizer):
        self.data, self.normalizer = data, normalizer

    def stack(self, samples, fields, steps):
        parts = [
            self.normalizer.normalize(name, np.stack([one.fields[name][:steps] for one in samples]))
            for name in fields
        ]
        return torch.from_numpy(np.concatenate(parts, axis=-1))

    def __call__(self, samples):
        past = self.data.lowdim_past_timesteps
        return {
            "keys": [one.key for one in samples],
            "state": self.stack(samples, self.data.proprioception_fields, past + 1).flatten(1),
            "actions": self.stack(samples, self.data.action_fields, None),
            "mask": torch.from_numpy(np.stack([one.future_mask for one in samples])),
        }
"""
PRESET = """\
# The linear model of acme_vla.
model: {type: acme_mlp, bias: false}
hparams: {precision: float32, global_batch_size: 8, per_gpu_batch_size: 8, lr: 0.05}
data: {allow_multiple_epochs: true, num_workers: 0}
"""


def acme_distribution(root: Path) -> Path:
    """Writes the package and its metadata; `root` is to be put on the path."""
    files = {
        "acme_vla/__init__.py": "",
        "acme_vla/reader.py": READER,
        "acme_vla/spec.py": SPEC,
        "acme_vla/model.py": MODEL,
        "acme_vla/presets/runs/acme-linear.yaml": PRESET,
        "acme_vla-0.1.dist-info/METADATA": METADATA,
        "acme_vla-0.1.dist-info/entry_points.txt": ENTRY_POINTS,
    }
    return _write(root, files)


def hostile_distribution(root: Path) -> Path:
    """Writes a distribution with a module that cannot be imported and a name that is taken."""
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
