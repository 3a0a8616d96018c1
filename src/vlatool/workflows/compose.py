"""Weights to start a future_vla model from: Qwen3-VL and DINOv3, or tiny random ones."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import model_validator

from vlatool.checkpoints.export.layout import COMPOSE
from vlatool.config.base import ConfigModel, check_required, execution_field, option, required_field
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import DRY_RUN_HELP
from vlatool.jobs.job import current_states, input_state, inputs_of
from vlatool.jobs.ownership import is_whole, plan_output, single_output, versions_of
from vlatool.jobs.record import OutputRecord
from vlatool.models.future_vla.config import PatchOrder, Steps, check_grid
from vlatool.models.pretrained import base_model
from vlatool.results import UNLISTED, Result, outcome
from vlatool.storage.tree import size_text
from vlatool.storage.uri import location

_USAGE = "vlatool compose --qwen DIR --dino DIR --output DIR"
_TINY = "future-vla-tiny"
_LIBERO = "future-vla-libero"
_SECTION = ("views", "compress", "patch_order")


class ComposeConfig(ConfigModel):
    """Options of `vlatool compose`."""

    qwen: str | None = option(None, "Qwen3-VL: a folder of any scheme, or owner/name on the hub.")
    dino: str | None = option(None, "DINOv3 ViT: a folder of any scheme, or owner/name on the hub.")
    tiny: bool = option(
        False, "Write small random networks instead, with a text tokenizer on bytes, for tests."
    )
    output: str = required_field("", "Folder for weights, tokenizer and manifest.")
    views: int = option(2, "Number of cameras.", ge=1, le=64)
    compress: Steps = option(
        (8, 6, 2), "Number of past steps that are compressed to each grid of patches, oldest first."
    )
    patch_order: PatchOrder = option("raster", "raster: as published; block: as Qwen3-VL expects.")
    seed: int = option(0, "Seed of the random weights.", ge=0)
    overwrite: bool = execution_field(
        default=False, description="Replace a folder that was composed in another way."
    )
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        check_grid(self.views, self.compress)
        return self


@dataclass(frozen=True)
class ComposeResult(Result):
    """Composed weights."""

    output: str
    parameters: int  # number of values
    tensors: int
    bytes: int  # of the files of weights
    status: str = "written"  # or `already complete`, `planned`
    next: str = ""
    preset: str = field(default="", metadata=UNLISTED)  # that trains such weights

    def lines(self) -> list[str]:
        content = (
            f"{self.parameters / 1e6:,.2f} M parameters in {self.tensors} tensors, "
            f"{size_text(self.bytes)}"
        )
        train = f"to train: vlatool train --preset {self.preset} --init-from {self.output} --data"
        return [
            outcome(self.output, self.status, content, f"would write {content}"),
            f"{train} and the folder that `vlatool build-dataset` wrote",
        ]


def compose(config: ComposeConfig, *, reporter: Reporter = NULL) -> ComposeResult:
    """Writes weights to start from; equal options and inputs give equal bytes.

    The convolutions between both networks are random. The folder has the layout of Qwen3-VL on the
    hub, and a manifest.

    Raises:
        UsageError: A key is missing, or the output has other content.
        DataError: A base model is missing or broken, or does not fit.
        StorageError: The output cannot be written.
    """
    from vlatool.models.future_vla.compose import compose as compose_models
    from vlatool.models.future_vla.compose import compose_tiny

    check_required(config, _USAGE)
    sources = _sources(config)
    keys = {name: getattr(config, name) for name in _SECTION}
    target = location(config.output)
    record = _record(config, sources)
    earlier = plan_output(target, record, lambda: record.inputs, overwrite=config.overwrite)
    if config.tiny:
        composition = compose_tiny(keys, config.seed)
    else:
        composition = compose_models(sources["qwen"], sources["dino"], keys, config.seed)
    is_complete = is_whole(target, earlier, reporter)
    status = "already complete" if is_complete else "planned" if config.dry_run else "written"
    if status == "written":
        with (
            reporter.progress("compose", len(composition.shapes), "tensors") as bar,
            single_output(target, record, composition.files),
        ):
            composition.write(target, bar)
    return ComposeResult(
        output=config.output,
        parameters=composition.parameters,
        tensors=len(composition.shapes),
        bytes=composition.bytes,
        status=status,
        next=shlex.join(["vlatool", "inspect", config.output]),
        preset=_TINY if config.tiny else _LIBERO,
    )


def _sources(config: ComposeConfig) -> dict[str, Path]:
    names = {"qwen": config.qwen, "dino": config.dino}
    missing = [name for name, value in names.items() if not value]
    if config.tiny and len(missing) < len(names):
        raise UsageError(
            "--tiny makes both networks, so it cannot be combined with --qwen and --dino",
            hint="leave out --tiny, or --qwen and --dino",
            code="usage.conflict",
        )
    if config.tiny:
        return {}
    if missing:
        raise UsageError(
            f"{missing[0]!r} needs a value",
            hint=f"{_USAGE}, or vlatool compose --tiny --output DIR for small random networks",
            code="usage.missing_key",
        )
    return {name: base_model(str(value)) for name, value in names.items()}


def _record(config: ComposeConfig, sources: Mapping[str, Path]) -> OutputRecord:
    excluded = {"qwen", "dino", *config.no_effect_on_output}
    options = {
        **config.model_dump(mode="json", exclude=excluded),
        **{name: folder.name for name, folder in sources.items()},
        **versions_of(sources.values()),
    }
    states = current_states(
        list(sources.values()), lambda folder: folder.name, lambda folder: input_state([folder])
    )
    return OutputRecord(COMPOSE, options, inputs_of(states, "base model"))
