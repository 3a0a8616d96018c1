"""Errors of a policy on episodes that it was not trained on, by cross-validation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.artifacts.curation.format import FOLDS, Curation, write_curation
from vlatool.artifacts.run.format import CONFIG
from vlatool.artifacts.shards.format import ShardFolder
from vlatool.config.resolve import Override, load_config
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
) -> dict[str, float]:
    """Error of the actions of each episode, in standard deviations, of a policy that is trained
    like the run `config.model` on the other folds; complete parts are not computed again.

    Raises:
        UsageError: The run is not of a policy on the shards of `vlatool preprocess`.
    """
    from vlatool.evaluation.config import OpenLoopConfig
    from vlatool.training.config import TrainConfig
    from vlatool.workflows.evaluate import open_loop
    from vlatool.workflows.train import train

    run = pinned(config.model or "")
    if not (run / CONFIG).is_file():
        raise DataError.at(
            run, "is no training run", hint="give a folder with a config.yaml", code="data.no_run"
        )
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
    keys = {key: value for key, value in record.options.items() if key not in _OF_SELECTION}
    keys |= {"sink.type": record.options.get("sink", "lbm")}
    keys |= {"format": config.format} if config.format else {}
    folds = [_fold(config, curation, root, part, keys, reporter) for part in range(config.folds)]
    errors: dict[str, float] = {}
    for part, tested in enumerate(folds):
        others = [ShardFolder.open(fold) for fold in folds if fold != tested]
        typed = {
            "data.dataset_manifest": [str(fold.manifest) for fold in others],
            "data.dataset_statistics": [str(fold.statistics_file) for fold in others],
            "save_path": str(root),
            "name": f"run_{part}",
            "remote_sync": None,
        }
        overrides = [Override(key, value, "curate --model") for key, value in typed.items()]
        resolved = load_config(TrainConfig, files=[str(run / CONFIG)], overrides=overrides)
        train(resolved.config, reporter=reporter)
        asked = OpenLoopConfig(
            checkpoint=str(root / f"run_{part}"),
            data=str(tested),
            output=str(root / f"errors_{part}"),
        )
        for each in open_loop(asked, reporter=reporter).episodes:
            if each.error is not None:
                errors[each.episode] = each.error
    return errors


def _fold(
    config: "CurateConfig",
    curation: Curation,
    root: Path,
    part: int,
    keys: dict[str, Any],
    reporter: Reporter,
) -> Path:
    """Shards of every `folds`-th episode from `part` on."""
    chosen = root / f"part_{part}.json"
    rows = enumerate(curation.episodes)
    of_part: Sequence[Any] = [
        replace(each, reasons=() if row % config.folds == part else ("another fold",))
        for row, each in rows
    ]
    write_curation(chosen, Curation(tuple(of_part), {}, {}))
    typed = {
        **keys,
        "sources": config.sources,
        "episodes": f"@{chosen}",
        "output": str(root / f"data_{part}"),
        "workers": config.workers,
    }
    overrides = [Override(key, value, "curate --model") for key, value in typed.items()]
    preprocess(load_config(PreprocessConfig, overrides=overrides).config, reporter=reporter)
    return root / f"data_{part}"
