"""Experiment folder of the published policy program: configuration, statistics, checkpoints.

Source: formats/published-runs 1 to 5.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vlatool import __version__
from vlatool.checkpoints.contract import CONTRACT
from vlatool.datasets.base_model import TOKENIZER
from vlatool.datasets.lbm.layout import CONFIG_NAME as OPTIONS_NAME
from vlatool.datasets.lbm.layout import METADATA_NAME, read_preprocessing_config
from vlatool.datasets.stats.layout import STATS_NAME, Statistics, read_stats
from vlatool.errors import DataError
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import DocumentError, read_yaml, write_checksummed
from vlatool.storage.uri import can_list, is_remote

CONFIG = "config.yaml"
MODEL = "config_model.yaml"
NORMALIZER = "config_normalizer.yaml"
PROCESSOR = "config_processor.yaml"
# Keys of this program that the published one does not have; only exports have the file.
OWN = "vlatool.yaml"
# Suffix of the files of checkpoints.
PICKLED_SUFFIX = ".pt"
_CHECKPOINTS = "checkpoints"
# Names of earlier versions of the published program.
_OLD_OPTIONS = "preprocessing_configs.yaml"
_OLD_STATS = "stats_normalizer.json"
_CHECKPOINT = re.compile(rf"(checkpoint|ema)_(\d+){re.escape(PICKLED_SUFFIX)}")
_RAW = "checkpoint"
_AVERAGED = "ema"
_OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class CheckpointFiles:
    """Files of one checkpoint; they may be missing."""

    number: int  # N of `checkpoint_N.pt`
    raw: Path  # file with the weights and the progress
    averaged: Path  # file with the averaged weights
    optimizer: Path  # file with the state of the optimizer

    @classmethod
    def of(cls, folder: Path, number: int) -> "CheckpointFiles":
        return cls(
            number,
            raw=folder / f"{_RAW}_{number}{PICKLED_SUFFIX}",
            averaged=folder / f"{_AVERAGED}_{number}{PICKLED_SUFFIX}",
            optimizer=folder / f"{_OPTIMIZER}_{number}{PICKLED_SUFFIX}",
        )

    @classmethod
    def with_file(cls, path: Path) -> "CheckpointFiles | None":
        """Files of the checkpoint of a file of weights; None for another file name."""
        match = _CHECKPOINT.fullmatch(path.name)
        return None if match is None else cls.of(path.parent, int(match[2]))


# Number of the only checkpoint of an export, its files, and all files of an export.
EXPORT_NUMBER = 1
_EXPORTED = CheckpointFiles.of(Path(_CHECKPOINTS), EXPORT_NUMBER)
WEIGHTS = str(_EXPORTED.raw)
AVERAGE = str(_EXPORTED.averaged)
FILES = (
    *(CONFIG, MODEL, NORMALIZER, PROCESSOR, OWN),
    *(STATS_NAME, OPTIONS_NAME, METADATA_NAME, TOKENIZER, CONTRACT.name),
    *(WEIGHTS, AVERAGE),
)


class Experiment:
    """Experiment folder; paths in it, and content of its small files."""

    def __init__(self, root: Path) -> None:
        self.root = root  # the folder, of any scheme
        self.config = root / CONFIG  # file with the whole configuration

    @classmethod
    def of_file(cls, path: Path) -> "Experiment | None":
        """Experiment with a file in its folder of checkpoints, or beside its configuration."""
        for folder in (path.parent.parent, path.parent):
            if is_experiment(folder):
                return cls(folder)
        return None

    @property
    def is_export(self) -> bool:
        """True if this program wrote it, with its own keys."""
        return (self.root / OWN).is_file()

    @property
    def config_files(self) -> list[str]:
        """Locations of the configuration files, each merged over the ones before it."""
        files = [str(self.config)]
        if self.is_export:
            files.append(str(self.root / OWN))
        return files

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder, if it holds the text tokenizer; only exports do."""
        return self.root if (self.root / TOKENIZER).is_file() else None

    def tree(self, name: str = CONFIG) -> dict[str, Any]:
        """Content of one of its YAML files."""
        path = self.root / name
        try:
            content: object = read_yaml(path)
        except (OSError, DocumentError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _config_error(path, reason) from None
        if not isinstance(content, dict):
            raise _config_error(path, "not a mapping")
        return content

    def checkpoints(self) -> list[CheckpointFiles]:
        """Checkpoints with any weights, ascending; empty on storage that cannot be listed."""
        folder = self.root / _CHECKPOINTS
        numbers: set[int] = set()
        if can_list(folder) and folder.is_dir():
            for path in folder.iterdir():
                match = _CHECKPOINT.fullmatch(path.name)
                if match is not None:
                    numbers.add(int(match[2]))
        return [CheckpointFiles.of(folder, number) for number in sorted(numbers)]

    def statistics(self) -> Statistics:
        """Content of stats.json."""
        old = self.root / _OLD_STATS
        return read_stats(old if old.is_file() else self.root / STATS_NAME)

    def options(self) -> dict[str, Any]:
        """Preprocessing options of the first data set."""
        name = _OLD_OPTIONS if (self.root / _OLD_OPTIONS).is_file() else OPTIONS_NAME
        return read_preprocessing_config(self.root, name)


def is_experiment(location: Path) -> bool:
    """True if a folder looks like an experiment of the published program.

    Of a local one, `MODEL` may be missing.
    """
    if not (location / CONFIG).is_file():
        return False
    if (location / MODEL).is_file():
        return True
    return not is_remote(location) and bool(Experiment(location).checkpoints())


def recognize(location: Path) -> str | None:
    """`experiment`, or `experiment_file` for a file of weights, at the location of one."""
    if CheckpointFiles.with_file(location) is not None and location.is_file():
        return "experiment_file"
    return "experiment" if is_experiment(location) else None


def write_configs(folder: Path, tree: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    data = tree["data"]
    files = {
        CONFIG: tree,
        MODEL: tree["model"],
        NORMALIZER: data["normalization"],
        PROCESSOR: data,
        OWN: own,
    }
    for name, content in files.items():
        write_text(folder / name, yaml.safe_dump(content, sort_keys=True, allow_unicode=True))


def write_metadata(folder: Path, sources: list[str], options: Mapping[str, Any]) -> None:
    """Writes processing_metadata.json without times, which an exported run does not have."""
    document = {
        "metadata_version": "1.0",
        "command_line": {"script_name": "vlatool preprocess", "arguments": dict(options)},
        "environment": {"vlatool": __version__},
        "dataset_sources": sources,
        "num_sources": len(sources),
    }
    write_checksummed(folder / METADATA_NAME, document)


def differing_files(experiment: Experiment) -> Iterator[str]:
    """Yields the configuration files whose content differs from their section of config.yaml."""
    tree = experiment.tree()
    data = tree.get("data")
    sections = {MODEL: tree.get("model"), PROCESSOR: data}
    if isinstance(data, dict):
        sections[NORMALIZER] = data.get("normalization")
    for name, section in sections.items():
        if experiment.tree(name) != section:
            yield name


def statistics_beside(manifest: str) -> str:
    """Location of the statistics of a data set."""
    folder = manifest.rstrip("/")
    if manifest.endswith(".jsonl"):
        folder = manifest.rpartition("/")[0]
    return f"{folder}/{STATS_NAME}" if folder else STATS_NAME


_config_error = partial(
    DataError.at, hint="copy the experiment again", code="data.broken", finding="broken_config"
)
