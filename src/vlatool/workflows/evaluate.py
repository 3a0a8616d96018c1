"""Parts that all evaluations of a policy share: weights, recorded data, the folder of results."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.checkpoints.contract import Contract, differences, refuse
from vlatool.config.base import (
    ConfigModel,
)
from vlatool.errors import DataError, UsageError
from vlatool.jobs.ownership import versions_of
from vlatool.loading.base import PairOptions, RecordedPairs, Split
from vlatool.models.published import Trained
from vlatool.models.trained import data_kind_of
from vlatool.storage.uri import is_remote, local_path

if TYPE_CHECKING:
    from vlatool.models.base import Policy
    from vlatool.report.facts import Part

# Differences from what training saw that were taken, by key.
Allowed = dict[str, dict[str, str]]


REPORT = "report.json"


# Label and decimals of the errors of predicted images.
_FUTURE_METRICS: Mapping[str, tuple[str, int]] = {
    "code_accuracy": ("accuracy of codes", 4),
    "copy_present_code_accuracy": ("of a copy of the present image", 4),
    "psnr": ("PSNR (dB)", 2),
    "copy_present_psnr": ("of the present image", 2),
    "reconstruction_psnr": ("of the tokenizer's reconstruction", 2),
    "moving_psnr": ("PSNR of moving pixels (dB)", 2),
    "moving_copy_present_psnr": ("of the present image", 2),
    "moving_reconstruction_psnr": ("of the tokenizer's reconstruction", 2),
}


def recorded_pairs(
    location: str, policy: "Policy", trained: Trained, seed: int, split: Split = "all"
) -> RecordedPairs:
    """Recorded observations and targets that a policy can be evaluated on."""
    kind = data_kind_of(trained.config)
    options = PairOptions(policy.sees, policy.horizon, seed, split)
    pairs = kind.pairs(trained.config.data, trained.assets, location, options)
    if pairs is None:
        raise DataError(
            f"data of the kind {kind.name!r} hold no actions to compare a policy with",
            hint="evaluate the policy with `vlatool eval rollout`",
            code="data.missing",
        )
    return pairs


def compared(
    policy: "Policy", other: Contract | None, allow: Collection[str], where: object
) -> Allowed:
    """Differences from the training data that `allow` permits; raises DataError for any other."""
    unequal = differences(policy.contract, other) if policy.contract and other else ()
    return refuse(
        unequal, allow, where, "convert them like the training data, or train on data like them"
    )


def recorded_options(config: ConfigModel, trained: Trained, **inputs: Path) -> dict[str, Any]:
    """Options for the record; inputs are recorded by name, without their paths."""
    options = config.model_dump(mode="json", exclude={"output"})
    options |= {"checkpoint": checkpoint_of(trained).name}
    options |= {key: path.name for key, path in inputs.items()}
    return options | versions_of([folder_of(trained), *inputs.values()])


def results_folder(output: str | None, trained: Trained, name: str) -> Path:
    """Folder for results: `output`, or a folder in the run."""
    root = folder_of(trained)
    if not output and (trained.origin.run is None or is_remote(root)):
        raise UsageError(
            f"{root}: vlatool writes no results into a remote run or a published folder",
            hint="add --output DIR, a folder on this machine",
            code="usage.missing_key",
        )
    return local_path(output) if output else root / "eval" / name


def checkpoint_of(trained: Trained) -> Path:
    """The checkpoint of the weights, or their published file."""
    return trained.origin.checkpoint or trained.origin.file


def folder_of(trained: Trained) -> Path:
    """The run of the weights, or the folder of their published file."""
    origin = trained.origin
    return origin.file.parent if origin.run is None else origin.run.root


def weights_text(weights: str) -> str:
    """Words for the kind of weights, which is unknown for a published file."""
    return f"{weights} weights" if weights else "published weights"


def futures_text(futures: Mapping[str, Any]) -> Iterator[str]:
    """Errors of predicted images as lines of text, a column per step."""
    steps: Mapping[str, Mapping[str, float | None]] = futures.get("steps", {})
    if not steps:
        return
    yield f"{'predicted images':<52}" + "".join(f"{f'+{step}':>14}" for step in steps)
    for name, (label, digits) in _FUTURE_METRICS.items():
        figures = "".join(f"{digits_text(values[name], digits):>14}" for values in steps.values())
        yield f"   {label:<49}{figures}"


def futures_tables(futures: Mapping[str, Any] | None) -> "list[Part]":
    from vlatool.report.facts import Table

    steps: Mapping[str, Mapping[str, float | None]] = (futures or {}).get("steps", {})
    if not steps:
        return []
    rows: list[tuple[object, ...]] = []
    for name, (label, digits) in _FUTURE_METRICS.items():
        rows.append((label, *(digits_text(values[name], digits) for values in steps.values())))
    return [Table(("", *(f"step +{step}" for step in steps)), rows)]


def digits_text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
