"""The plugins of `docs/guides/plugins.md` as a distribution, one that is broken, and their data.

They are found like installed distributions: a folder on the import path with packages and a
`.dist-info`.
"""

import json
import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs/guides/plugins.md"
METADATA = "Metadata-Version: 2.1\nName: acme_vla\nVersion: 0.1\n"
PRESET = """\
# The model of the page.
model: {type: acme_gan, teacher: teacher.safetensors}
hparams: {precision: float32, global_batch_size: 8, per_gpu_batch_size: 8, lr: 0.05, warmup: 0}
data: {allow_multiple_epochs: true, num_workers: 0}
"""


def acme_distribution(root: Path) -> Path:
    """Writes the packages of the page and their metadata; returns `root`, to be put on the import
    path.
    """
    page = PAGE.read_text()
    entry_points = re.findall(r'entry-points."(.*?)"\]\n(\w+) = "(.*?)"', page)
    reader, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    named = (re.match(r"# (acme_gan/\w+\.py)\n", block) for block in others)
    files = {
        "acme_vla/__init__.py": reader,
        "acme_gan/__init__.py": "",
        **{name[1]: name.string for name in named if name},
        "acme_gan/presets/runs/acme-rows.yaml": PRESET,
        "acme_vla-0.1.dist-info/METADATA": METADATA,
        "acme_vla-0.1.dist-info/entry_points.txt": "".join(
            f"[{group}]\n{name} = {target}\n" for group, name, target in entry_points
        ),
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
    """Writes episodes; returns `root`."""
    rng = np.random.default_rng(0)
    for number in range(episodes):
        folder = root / f"episode_{number}"
        folder.mkdir(parents=True)
        np.save(folder / "action.npy", rng.normal(size=(frames, 2)))
        np.save(folder / "wrist.npy", rng.integers(0, 256, (frames, 16, 20, 3), dtype=np.uint8))
        meta = {"task": "PushBlock", "fps": 10, "text": "push the block"}
        (folder / "meta.json").write_text(json.dumps(meta))
    return root


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
