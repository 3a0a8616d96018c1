"""Errors of a policy on episodes that it was not trained on, by cross-validation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.artifacts.curation.format import FOLDS, MODEL_ERROR, Curation, write_curation
from vlatool.artifacts.run.format import CONFIG
from vlatool.artifacts.shards.format import ShardFolder
from vlatool.config.resolve import Override, load_config
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter
from vlatool.jobs.record import read_record
from vlatool.storage.uri import location, pinned
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

if TYPE_CHECKING:
    from vlatool.workflows.curate import CurateConfig

# Options of the windows of a run that are those of the curation here.
_OF_SELECTION = ("episodes", "exclude", "max_episodes", "format", "sources", "sink")


def model_errors(
    config: "CurateConfig", curation: Curation, reporter: Reporter
) -> dict[str, Array]:
    """The figure `model_error` [N]: error of the actions of each episode, in standard deviations,
    of a policy that is trained like the run `config.model` on the other folds; NaN without.
    Complete parts are not computed again.

    Raises:
        DataError: There is no such run.
        UsageError: The run is not of a policy on the shards of `vlatool preprocess`.
    """
    from vlatool.evaluation.config import OpenLoopConfig
    from vlatool.training.config import TrainConfig
    from vlatool.workflows.evaluate import open_loop
    from vlatool.workflows.train import train

    run = pinned(config.model or "")
    if not (run / CONFIG).is_file():
        hint = "give a folder with a config.yaml"
        raise DataError.at(run, "is no training run", hint=hint, code="data.no_run")
    trained: Any = load_config(TrainConfig, files=[str(run / CONFIG)]).config
    manifests = getattr(trained.data, "dataset_manifest", ())
    record = read_record(ShardFolder.open(pinned(manifests[0])).output) if manifests else None
    if record is None:
        raise UsageError(
            f"{config.model}: is no run of a policy on shards that are still there",
            hint="train one with vlatool train --data DIR of vlatool preprocess",
            code="usage.curation_model",
        )
    root = location(config.output) / FOLDS / f"{run.name}_{config.folds}"
    of_windows = {key: value for key, value in record.options.items() if key not in _OF_SELECTION}
    of_windows["sink.type"] = record.options.get("sink", "lbm")
    folds: list[Path] = []
    for part in range(config.folds):  # every `folds`-th episode from `part` on
        episodes = [
            replace(each, reasons=() if row % config.folds == part else ("another fold",))
            for row, each in enumerate(curation.episodes)
        ]
        chosen = root / f"part_{part}.json"
        write_curation(chosen, Curation(tuple(episodes), {}, {}))
        folds.append(root / f"data_{part}")
        of_part = {"sources": config.sources, "episodes": f"@{chosen}", "output": str(folds[-1])}
        of_part |= {
            "workers": config.workers,
            **({"format": config.format} if config.format else {}),
        }
        windows = load_config(PreprocessConfig, overrides=_typed({**of_windows, **of_part}))
        preprocess(windows.config, reporter=reporter)
    errors: dict[str, float] = {}
    for part, tested in enumerate(folds):
        others = [ShardFolder.open(fold) for fold in folds if fold != tested]
        keys = {
            "data.dataset_manifest": [str(fold.manifest) for fold in others],
            "data.dataset_statistics": [str(fold.statistics_file) for fold in others],
            "save_path": str(root),
            "name": f"run_{part}",
            "remote_sync": None,
        }
        resolved = load_config(TrainConfig, files=[str(run / CONFIG)], overrides=_typed(keys))
        train(resolved.config, reporter=reporter)
        asked = OpenLoopConfig(
            checkpoint=str(root / f"run_{part}"),
            data=str(tested),
            output=str(root / f"errors_{part}"),
        )
        done = open_loop(asked, reporter=reporter).episodes
        errors |= {each.episode: each.error for each in done if each.error is not None}
    return {MODEL_ERROR: np.array([errors.get(each.id, np.nan) for each in curation.episodes])}


def _typed(keys: Mapping[str, Any]) -> list[Override]:
    return [Override(key, value, "curate --model") for key, value in keys.items()]
