"""How well a tokenizer draws pictures again: figures beside simple baselines, and a page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vlatool.artifacts.run_dir import find_checkpoint, is_run
from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.record import OutputRecord, versions_of
from vlatool.jobs.single_output import check_output_owner, single_output
from vlatool.storage.atomic import write_json
from vlatool.storage.uri import is_remote, location, pinned, require_existing

if TYPE_CHECKING:
    from vlatool.evaluation.image_quality import BestMedianWorst, ImageScore
    from vlatool.evaluation.measuring import EvalOptions, EvalResult
    from vlatool.evaluation.metric_networks import LoadedMetricNetworks
    from vlatool.evaluation.trained_tokenizer import TrainedTokenizer
    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.training.runtime import Runtime

REPORT, PAGE = "report.json", "report.html"
_SHOWN = 8
# How a figure is called, in the order of the table: name, unit, decimals.
_METRICS: Mapping[str, tuple[str, str, int]] = {
    "psnr": ("PSNR, mean over pictures", "dB", 2),
    "psnr_of_mean_error": ("PSNR of the mean error", "dB", 2),
    "mean_picture_psnr": ("PSNR of the mean picture", "dB", 2),
    "block_psnr": ("PSNR of blocks of 16 x 16 pixels", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "lpips": ("LPIPS", "", 4),
    "rfid": ("rFID", "", 3),
    "codebook_usage": ("codes in use", "of 1", 3),
    "codebook_entropy": ("entropy of the codes", "bits", 2),
    "changed_codes": ("codes that change to the next frame", "", 2),
    "constant_places": ("places that never change", "", 0),
}


class TokenizerEvalConfig(ConfigModel):
    """What is measured."""

    checkpoint: str = required_field(
        "", "Run, checkpoint, published folder or file of weights, of any scheme."
    )
    data: str = required_field("", "Image shards: a folder, a list, a pattern, of any scheme.")
    split: Literal["train", "val"] = Field(
        default="val", description="Which list counts of a folder that has both."
    )
    output: str | None = Field(
        default=None, description="Folder for the results; null: in the run, if that is local."
    )
    teacher: str | None = Field(
        default=None,
        description="What draws the codes that a first stage predicts; null: the one it learned "
        "from.",
    )
    perceptual_weights: str | None = Field(
        default=None,
        description="Folder with published weights of the networks that LPIPS and rFID look "
        "through; without them these are not measured.",
    )
    convert_colors: bool = Field(
        default=False, description="Make RGB of grey, palette and alpha pictures, else drop them."
    )
    batch_size: int = Field(default=64, ge=1, description="Pictures at once.")
    num_workers: int = Field(default=0, ge=0, description="Loader processes of each process.")


@dataclass(frozen=True)
class TokenizerEvalResult:
    """What was measured.

    Attributes:
        checkpoint: The file of weights.
        data: As it was given.
        pictures: How many were measured.
        dropped: How many could not be used, by the reason.
        figures: By name; `psnr_of_mean_error` is to be held against the baselines.
        not_measured: What was not, and why.
        networks: SHA-256 of each file of weights that was looked through.
        extremes: The best, median and worst pictures by their names, with PSNR.
        page: An HTML page with them.
        report: This as a file.
    """

    checkpoint: str
    data: str
    pictures: int
    dropped: Mapping[str, int]
    figures: Mapping[str, float]
    not_measured: Mapping[str, str]
    networks: Mapping[str, str]
    extremes: Mapping[str, Mapping[str, float]]
    page: str
    report: str

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The figures as text: name and value."""
        shown = [(*_METRICS[name], self.figures[name]) for name in _METRICS if name in self.figures]
        return [(told, f"{value:.{digits}f} {unit}".strip()) for told, unit, digits, value in shown]

    def text(self) -> str:
        """The result for people."""
        lines = [f"{self.data}: {self.pictures} pictures"]
        lines += [f"   dropped: {count} {reason}" for reason, count in self.dropped.items()]
        lines += [f"{told:<38}{value:>14}" for told, value in self.rows()]
        lines += [f"not measured: {name} ({why})" for name, why in self.not_measured.items()]
        return "\n".join([*lines, f"pictures: {self.page}"])


def tokenizer_eval(
    config: TokenizerEvalConfig, *, reporter: Reporter = NULL
) -> TokenizerEvalResult:
    """Draws pictures again and compares; under several ranks each takes some of the shards.

    Raises:
        UsageError: A key is missing, the output holds something else, or a first stage has nothing
            that draws its codes.
        DataError: Tokenizer or data are missing or broken.
    """
    from vlatool.evaluation.measuring import evaluate_reconstruction
    from vlatool.evaluation.metric_networks import load_metric_networks
    from vlatool.evaluation.trained_tokenizer import open_tokenizer
    from vlatool.training.config import TrainConfig
    from vlatool.training.runtime import Runtime

    check_required(config, "vlatool tokenizer eval CHECKPOINT DATA")
    checkpoint, data = pinned(config.checkpoint), pinned(config.data)
    output = _output(config)
    record = OutputRecord("tokenizer eval", _options(config, checkpoint, data))
    check_output_owner(output, record)
    runtime = Runtime(TrainConfig())
    tokenizer = open_tokenizer(str(checkpoint), runtime.device, config.teacher)
    judges = load_metric_networks(config.perceptual_weights, runtime.device)
    images, how = _data(config, str(data), tokenizer), _eval_options(config, runtime)
    reporter.note(f"measuring {tokenizer.path}")
    measured = evaluate_reconstruction(tokenizer, images, how, judges.judges, runtime.sum, reporter)
    rows = _all_rows(measured, runtime)
    result = _result(config, tokenizer, measured, judges, output)
    if not runtime.is_main:
        return result
    from vlatool.evaluation.image_quality import extremes

    chosen = extremes(rows, "psnr", _SHOWN)
    result = replace(result, extremes=_by_name(chosen))
    with single_output(output, record, (REPORT, PAGE)):
        _write_page(result, chosen, tokenizer, images, how)
        write_json(output / REPORT, result.document())
    return result


def _data(
    config: TokenizerEvalConfig, data: str, tokenizer: "TrainedTokenizer"
) -> "ImageDataConfig":
    from vlatool.loading.images.config import ImageDataConfig

    return ImageDataConfig(
        shards=[data],
        split=config.split,
        preprocessing=tokenizer.preprocessing,
        convert_colors=config.convert_colors,
    )


def _eval_options(config: TokenizerEvalConfig, runtime: "Runtime") -> "EvalOptions":
    from vlatool.evaluation.measuring import EvalOptions

    return EvalOptions(
        batch_size=config.batch_size,
        device=runtime.device,
        rank=runtime.rank,
        world_size=runtime.world_size,
        num_workers=config.num_workers,
    )


def _all_rows(measured: "EvalResult", runtime: "Runtime") -> list["ImageScore"]:
    """The figures of the pictures of all ranks."""
    from vlatool.evaluation.image_quality import ImageScore

    own = [json.dumps([row.key, dict(row.metrics)]) for row in measured.rows]
    return [ImageScore(*json.loads(text)) for text in runtime.gathered(own)]


def _result(
    config: TokenizerEvalConfig,
    tokenizer: "TrainedTokenizer",
    measured: "EvalResult",
    judges: "LoadedMetricNetworks",
    output: Path,
) -> TokenizerEvalResult:
    without = {} if tokenizer.codes else {"codes": "the tokenizer has no codebook"}
    return TokenizerEvalResult(
        checkpoint=str(tokenizer.path),
        data=config.data,
        pictures=measured.pictures,
        dropped=measured.dropped,
        figures=measured.metrics,
        not_measured={**judges.missing, **without},
        networks=judges.digests,
        extremes={},
        page=str(output / PAGE),
        report=str(output / REPORT),
    )


def _by_name(chosen: "BestMedianWorst") -> dict[str, dict[str, float]]:
    groups = {"best": chosen.best, "median": chosen.median, "worst": chosen.worst}
    return {name: {row.key: row.metrics["psnr"] for row in rows} for name, rows in groups.items()}


def _write_page(
    result: TokenizerEvalResult,
    chosen: "BestMedianWorst",
    tokenizer: "TrainedTokenizer",
    images: "ImageDataConfig",
    how: "EvalOptions",
) -> None:
    from vlatool.evaluation.measuring import reconstruct
    from vlatool.pages.tokenizer_page import ReconstructionReport, write_tokenizer_page

    keys = {row.key for rows in (chosen.best, chosen.median, chosen.worst) for row in rows}
    drawn = reconstruct(tokenizer, images, how, keys)
    report = ReconstructionReport(
        title=result.data,
        pictures=result.pictures,
        figures=result.rows(),
        notes=[f"{name} is not measured: {why}" for name, why in result.not_measured.items()]
        + [f"dropped: {count} {reason}" for reason, count in result.dropped.items()],
    )
    pairs = {key: (one.original, one.made) for key, one in drawn.items()}
    write_tokenizer_page(location(result.page), report, result.extremes, pairs)


def _options(config: TokenizerEvalConfig, checkpoint: Path, data: Path) -> dict[str, Any]:
    """For the record; without the folders above what was read."""
    options = config.model_dump(mode="json", exclude={"output"})
    for name in ("teacher", "perceptual_weights"):
        options[name] = None if options[name] is None else Path(options[name]).name
    options |= {"checkpoint": checkpoint.name, "data": data.name}
    return options | versions_of([checkpoint, data])


def _output(config: TokenizerEvalConfig) -> Path:
    if config.output:
        return location(config.output)
    place = require_existing(config.checkpoint)
    root = None
    if place.is_dir():
        root = place if is_run(place) else None
        root = root or (place.parent.parent if is_run(place.parent.parent) else None)
    if root is None or is_remote(place):
        raise UsageError(
            f"{config.checkpoint}: is no local run, beside which results could be written",
            hint="give a folder with --output",
            code="usage.needs_output",
        )
    name = Path(config.data.rstrip("/")).stem
    return find_checkpoint(place)[0].root / "eval" / f"tokenizer-{name}"
