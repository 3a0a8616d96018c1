"""Names of 0.3 for `media`, `recordings`, `datasets` and `checkpoints`; they go with 0.5."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_OLD = f"{__name__}."
_MOVED = {
    "base_model": "vlatool.datasets.base_model",
    "codes": "vlatool.datasets.codes",
    "contract": "vlatool.checkpoints.contract",
    "experiment": "vlatool.checkpoints.experiment",
    "export": "vlatool.checkpoints.export",
    "fast": "vlatool.datasets.fast",
    "frames": "vlatool.datasets.frames",
    "image_shards": "vlatool.datasets.image_shards",
    "limits": "vlatool.media.limits",
    "lines": "vlatool.media.lines",
    "media": "vlatool.media",
    "run": "vlatool.checkpoints",
    "samples": "vlatool.datasets.samples",
    "shards": "vlatool.datasets.lbm",
    "stats": "vlatool.datasets.stats",
    "task_table": "vlatool.datasets.task_table",
    "windows": "vlatool.datasets.jsonl",
}


class _MovedModules(MetaPathFinder, Loader):
    """Imports the module that a name of 0.3 has now, with a warning."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(fullname, self) if fullname.startswith(_OLD) else None

    def exec_module(self, module: ModuleType) -> None:
        first, dot, rest = module.__name__.removeprefix(_OLD).partition(".")
        name = f"{_MOVED.get(first, f'vlatool.recordings.{first}')}{dot}{rest}"
        text = f"{module.__name__} is {name} now; the old name goes with 0.5"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(name)


sys.meta_path.insert(0, _MovedModules())
