"""Measures how well a visual tokenizer reconstructs images, beside simple baselines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlatool.checkpoints.layout import is_run
from vlatool.checkpoints.locations import find_checkpoint, require_weights
from vlatool.config.base import (
    ConfigModel,
    check_required,
    option,
    required_field,
    typed_command,
)
from vlatool.datasets.codes.layout import COLLAPSED, CodesUsage
from vlatool.datasets.image_shards.layout import find_shards
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.ownership import check_owner, single_output, versions_of
from vlatool.jobs.record import OutputRecord
from vlatool.results import Result
from vlatool.storage.atomic import write_json
from vlatool.storage.uri import is_remote, location, pinned

if TYPE_CHECKING:
    from vlatool.evaluation.reconstruction import (
        EvalResult,
        ImagePair,
        MetricNetworks,
    )
    from vlatool.models.tokenizer import OpenTokenizer

REPORT = "report.json"
PAGE = "report.html"
_SHOWN = 8
_COLLAPSED_ABOVE = 0.99  # share of codes equal to the commonest at their position
# Label, unit and decimals of each metric, in the order of the table.
_METRICS: Mapping[str, tuple[str, str, int]] = {
    "psnr": ("PSNR, mean over images", "dB", 2),
    "psnr_of_mean_error": ("PSNR of the mean error", "dB", 2),
    "psnr_of_moving_pixels": ("PSNR of moving pixels", "dB", 2),
    "mean_picture_psnr": ("PSNR of the mean image", "dB", 2),
    "block_psnr": ("PSNR of blocks of 16 x 16 pixels", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "lpips": ("LPIPS", "", 4),
    "rfid": ("rFID", "", 3),
    "codebook_usage": ("codebook usage", "of 1", 3),
    "codebook_entropy": ("entropy of the codes", "bits", 2),
    "changed_codes": ("codes that change per frame", "", 2),
    "constant_places": ("constant code positions", "", 0),
    "frequent_codes": ("codes that are the most frequent one at their position", "of 1", 3),
}


class TokenizerEvalConfig(ConfigModel):
    """Options of `vlatool tokenizer eval`."""

    checkpoint: str = required_field(
        "", "Run, checkpoint, published folder or file of weights; local or remote."
    )
    data: str = required_field("", "Image shards: a folder, a list or a pattern; local or remote.")
    split: Literal["train", "val"] = option(
        "val", "List to use, if the folder has lists for training and validation."
    )
    output: str | None = option(
        None, "Folder for the results; null: a folder in the run, if it is local."
    )
    teacher: str | None = option(
        None,
        "Teacher that decodes the codes of a stage-1 tokenizer; null: the one of its training.",
    )
    perceptual_weights: str | None = option(
        None,
        "Folder with the published weights for LPIPS and rFID; null: these two are not measured.",
    )
    convert_colors: bool = option(
        False, "Convert gray, palette and alpha images to RGB, instead of leaving them out."
    )
    batch_size: int = option(64, "Images per batch.", ge=1)
    num_workers: int = option(0, "Loader workers per rank.", ge=0)


@dataclass(frozen=True)
class TokenizerEvalResult(Result):
    """Measured quality of a visual tokenizer."""

    guide: ClassVar[str] = "docs/guides/tokenizers.md"

    checkpoint: str  # the weights file
    data: str  # location, as given
    pictures: int  # that were measured
    dropped: Mapping[str, int]  # map from reason to number of images that could not be used
    dropped_images: Sequence[Mapping[str, str]]  # reason, name and message of each
    # Map from metric to value; `psnr_of_mean_error` is comparable with the baselines.
    figures: Mapping[str, float]
    not_measured: Mapping[str, str]  # metrics with the reason
    networks: Mapping[str, str]  # SHA-256 of the weights files of the metric networks
    extremes: Mapping[str, Mapping[str, float]]  # best, median and worst images: name to PSNR
    page: str  # HTML page with these images
    report: str  # JSON file with this result

    def table(self) -> list[tuple[str, str]]:
        """Label and value of each metric, as text."""
        rows: list[tuple[str, str]] = []
        for name, (label, unit, digits) in _METRICS.items():
            if name in self.figures:
                rows.append((label, f"{self.figures[name]:.{digits}f} {unit}".strip()))
        return rows

    def lines(self) -> Iterator[str]:
        yield f"{self.data}: {counted(self.pictures, 'image')}"
        for reason, count in self.dropped.items():
            yield f"   dropped: {count} {reason}"
        for drop in self.dropped_images[:_SHOWN]:
            yield f"      {drop['sample']}"
        if len(self.dropped_images) > _SHOWN:
            yield f"      and more; {REPORT} lists all"
        for label, value in self.table():
            yield f"{label:<38}{value:>14}"
        for name, reason in self.not_measured.items():
            yield f"not measured: {name} ({reason})"
        yield f"images: {self.page}"


def tokenizer_eval(
    config: TokenizerEvalConfig, *, reporter: Reporter = NULL
) -> TokenizerEvalResult:
    """Reconstructs images and compares them; each of several ranks takes some of the shards.

    Raises:
        UsageError: A key is missing, the output has different content, or a stage-1 tokenizer has
            no teacher to decode its codes.
        DataError: Tokenizer or data are missing or broken.
    """
    check_required(config, "vlatool tokenizer eval CHECKPOINT DATA")
    checkpoint = pinned(require_weights(config.checkpoint))
    data = pinned(config.data)
    find_shards(str(data), config.split)  # before the imports below, which take seconds
    from vlatool.evaluation import reconstruction
    from vlatool.evaluation.image_metrics import extremes
    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.models.tokenizer import open_tokenizer
    from vlatool.training.config import TrainConfig
    from vlatool.training.runtime import Runtime

    output = _output(config)
    record = OutputRecord("tokenizer eval", _options(config, checkpoint, data))
    check_owner(output, record)
    runtime = Runtime(TrainConfig())
    changes = {"teacher": config.teacher} if config.teacher else {}
    tokenizer = open_tokenizer(str(checkpoint), runtime.device, changes)
    run = tokenizer.network.reconstructor()
    networks = reconstruction.load_metric_networks(config.perceptual_weights, runtime.device)
    images = ImageDataConfig(
        shards=[str(data)],
        split=config.split,
        preprocessing=tokenizer.preprocessing,
        convert_colors=config.convert_colors,
    )
    options = reconstruction.EvalOptions(
        batch_size=config.batch_size,
        device=runtime.device,
        rank=runtime.rank,
        world_size=runtime.world_size,
        num_workers=config.num_workers,
        reduce=runtime.sum,
    )
    reporter.note(f"measuring {tokenizer.path}")
    evaluation = reconstruction.evaluate_reconstruction(
        tokenizer.network, run, images, options, networks, reporter
    )
    share = evaluation.metrics.get("frequent_codes", 0.0)
    problem = CodesUsage(evaluation.num_images, equal_images=share).problem
    if problem and share > _COLLAPSED_ABOVE:
        reporter.warn(COLLAPSED, f"{tokenizer.path}: {problem}")
    from vlatool.evaluation.image_metrics import ImageScore

    local_rows = [json.dumps([row.key, dict(row.metrics)]) for row in evaluation.rows]
    rows = [ImageScore(*json.loads(text)) for text in runtime.gather(local_rows)]
    texts = runtime.gather([json.dumps(asdict(drop)) for drop in evaluation.drops])
    drops = [json.loads(text) for text in texts]
    result = _result(config, tokenizer, evaluation, networks, output)
    result = replace(result, dropped_images=drops)
    if not runtime.is_main:
        return result
    ranked = extremes(rows, "psnr", _SHOWN)
    psnr_by_image: dict[str, dict[str, float]] = {}
    groups = {"best": ranked.best, "median": ranked.median, "worst": ranked.worst}
    for name, scores in groups.items():
        psnr_by_image[name] = {score.key: score.metrics["psnr"] for score in scores}
    result = replace(result, extremes=psnr_by_image)
    with single_output(output, record, (REPORT, PAGE)):
        images_shown = reconstruction.reconstruct(run, images, options, ranked.keys)
        command = typed_command("tokenizer eval", config, ("checkpoint", "data"))
        _write_page(result, images_shown, command)
        write_json(output / REPORT, result.document())
    return result


def _result(
    config: TokenizerEvalConfig,
    tokenizer: "OpenTokenizer",
    evaluation: "EvalResult",
    networks: "MetricNetworks",
    output: Path,
) -> TokenizerEvalResult:
    not_measured = dict(networks.missing)
    if not tokenizer.network.codebook_size:
        not_measured["codes"] = "the tokenizer has no codebook"
    return TokenizerEvalResult(
        checkpoint=str(tokenizer.path),
        data=config.data,
        pictures=evaluation.num_images,
        dropped=evaluation.dropped,
        dropped_images=[],
        figures=evaluation.metrics,
        not_measured=not_measured,
        networks=networks.digests,
        extremes={},
        page=str(output / PAGE),
        report=str(output / REPORT),
    )


def _write_page(
    result: TokenizerEvalResult, images: "Mapping[str, ImagePair]", command: str
) -> None:
    from vlatool.evaluation.reconstruction import ReconstructionReport, write_tokenizer_page

    notes = [f"{name} is not measured: {reason}" for name, reason in result.not_measured.items()]
    notes += [f"dropped: {count} {reason}" for reason, count in result.dropped.items()]
    report = ReconstructionReport(
        title=result.data,
        command=command,
        num_images=result.pictures,
        metrics=result.table(),
        notes=notes,
    )
    write_tokenizer_page(location(result.page), report, result.extremes, images)


def _options(config: TokenizerEvalConfig, checkpoint: Path, data: Path) -> dict[str, Any]:
    """Options for the record; inputs are recorded by name, without their paths."""
    options = config.model_dump(mode="json", exclude={"output"})
    for name in ("teacher", "perceptual_weights"):
        options[name] = None if options[name] is None else Path(options[name]).name
    options |= {"checkpoint": checkpoint.name, "data": data.name}
    return options | versions_of([checkpoint, data])


def _output(config: TokenizerEvalConfig) -> Path:
    if config.output:
        return location(config.output)
    path = require_weights(config.checkpoint)
    root = None
    if path.is_dir():
        root = path if is_run(path) else None
        root = root or (path.parent.parent if is_run(path.parent.parent) else None)
    if root is None or is_remote(path):
        raise UsageError(
            f"{config.checkpoint}: is not a local run, so results cannot be written into it",
            hint="add --output DIR",
            code="usage.missing_key",
        )
    name = Path(config.data.rstrip("/")).stem
    return find_checkpoint(path)[0].root / "eval" / f"tokenizer-{name}"
