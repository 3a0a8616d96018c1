"""Data kind of samples for a language model with images: `load_info`, reader, assets, pairs."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from vlatool.checkpoints.contract import CONTRACT, Contract
from vlatool.config.base import derivation_rules
from vlatool.datasets.fast.layout import is_fast, read_fast, write_fast
from vlatool.datasets.samples.layout import FAST_NAME
from vlatool.datasets.samples.profile import NAME as PROFILE_NAME
from vlatool.datasets.samples.profile import has_profile, read_profile, write_profile
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.loading import base
from vlatool.loading.vla.config import VlaAssets, VlaDataConfig, VlaSample
from vlatool.loading.vla.info import VlaInfo, load_info
from vlatool.loading.vla.pairs import VlaPairs
from vlatool.loading.vla.reader import DROP_REASONS, VlaReader, check_samples
from vlatool.report.text import few_text


class VlaKind(base.DataKind):
    """Samples with numbers for actions and future images; see `loading.base.DataKind`."""

    name: ClassVar[str] = "vla"
    Config: ClassVar[type[base.LoadingConfig]] = VlaDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("samples",)
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS

    def load_info(self, config: VlaDataConfig, reporter: Reporter = NULL) -> VlaInfo:  # pyright: ignore[reportIncompatibleMethodOverride] - a cached_property is read-only, too
        return load_info(config, reporter)

    def validation(self, config: VlaDataConfig) -> VlaDataConfig | None:
        """Returns the section of `val_samples`, or of the episodes that `val_ratio` selects."""
        if not config.val_samples and not config.val_ratio:
            return None
        changes: dict[str, Any] = {"val_samples": [], "split": "val", "shuffle": False}
        if config.val_samples:
            changes |= {"samples": config.val_samples, "dataset_weighting": []}
        return config.model_copy(update=changes)

    def derive(self, config: VlaDataConfig, info: VlaInfo) -> tuple[VlaDataConfig, dict[str, str]]:
        """Fills in shape, sizes and digests, which all data sets share."""
        first = info.first.assets
        values = {
            **asdict(first.shape),
            "cameras": list(first.shape.cameras),
            "fps": first.fps,
            "codes_per_image": first.sizes.codes_per_image,
            "num_codes": first.sizes.codebook_size,
            "num_actions": first.sizes.action_ids,
            "codes_digest": first.codes_digest,
            "fast_digest": info.first.fast_digest,
            "profile_digest": first.profile.digest,
        }
        return config.model_copy(update=values), derivation_rules(config, values)

    def check_samples(
        self, config: VlaDataConfig, info: VlaInfo, reporter: Reporter = NULL
    ) -> None:
        """Checks lines and names of images, unless samples may be dropped."""
        if info.profile.held:
            listed = few_text(list(info.profile.held))
            reporter.note(f"these never change in your data, so the policy holds them: {listed}")
        if not config.max_dropped_share:
            check_samples(info, reporter)

    def contents(self, config: VlaDataConfig, sample: VlaSample) -> Mapping[str, Any]:
        conversation = sample.conversation
        return {
            "images": sample.images,
            "actions": conversation.action_ids,
            "codes": conversation.codes,
            "instruction": conversation.task,
        }

    def reader(self, config: VlaDataConfig, info: VlaInfo) -> VlaReader:
        return VlaReader(info)

    def make_assets(self, config: VlaDataConfig, info: VlaInfo) -> VlaAssets:
        return replace(info.first.assets, profile=info.profile)

    def save_assets(self, config: VlaDataConfig, info: VlaInfo, folder: Path) -> None:
        """Writes the action tokenizer, if there is one, and the profile to fast/."""
        write_profile(folder / FAST_NAME / PROFILE_NAME, info.profile)
        if info.first.assets.fast is not None:
            write_fast(folder / FAST_NAME, info.first.assets.fast)
        CONTRACT.write(folder, asdict(info.first.assets.contract))

    def load_assets(self, config: VlaDataConfig, folder: Path) -> VlaAssets:
        fast = folder / FAST_NAME
        if not has_profile(fast):
            raise _unusable(fast / PROFILE_NAME, "is missing")
        profile = read_profile(str(fast))
        tokenizer = read_fast(fast) if is_fast(fast) else None
        if profile.digest != config.profile_digest:
            raise _unusable(fast / PROFILE_NAME, "is not the profile of the run")
        if tokenizer is not None and tokenizer.digest != config.fast_digest:
            raise _unusable(fast, "is not the action tokenizer of the run")
        assert config.fps is not None, "the section is derived"
        return VlaAssets(
            sizes=config.sizes,
            shape=config.shape,
            fps=config.fps,
            fast=tokenizer,
            profile=profile,
            codes_digest=config.codes_digest,
            contract=CONTRACT.read(folder) or Contract(),
        )

    def pairs(
        self, config: VlaDataConfig, assets: VlaAssets, location: str, options: base.PairOptions
    ) -> VlaPairs:
        ratio = config.val_ratio if options.split == "val" else 0.0
        return VlaPairs(config, assets, location, val_ratio=ratio)


def _unusable(path: Path, reason: str) -> DataError:
    return DataError.at(
        path,
        reason,
        hint="copy it again from the original run folder",
        code="data.broken",
    )
