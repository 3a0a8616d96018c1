"""One command line from raw robot episodes to a trained, evaluated policy."""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Episode": "vlatool.episode",
    "EpisodeRef": "vlatool.episode",
    "VlatoolError": "vlatool.errors",
    "load_config": "vlatool.config.resolve",
    "preprocess": "vlatool.workflows.preprocess",
    "resolve_config": "vlatool.workflows.resolve_config",
    "sample": "vlatool.workflows.sample",
    "train": "vlatool.workflows.train",
    "open_loop": "vlatool.workflows.evaluate",
    "rollout": "vlatool.workflows.evaluate",
    "inspect": "vlatool.workflows.inspect",
    "demo": "vlatool.workflows.demo",
    "open_dataset": "vlatool.loading.dataset",
    "doctor": "vlatool.workflows.doctor",
}


def __dir__() -> list[str]:
    return sorted(["__version__", *_PUBLIC])


def __getattr__(name: str) -> object:
    """Imports a public name on first use, so that `import vlatool` stays light."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vlatool' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
