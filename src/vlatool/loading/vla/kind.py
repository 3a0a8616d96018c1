"""Data kind of samples for a language model with images."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from vlatool.artifacts.fast.format import is_fast, read_fast, write_fast
from vlatool.artifacts.profile import NAME as PROFILE_NAME
from vlatool.artifacts.profile import has_profile, read_profile, write_profile
from vlatool.artifacts.samples.format import FAST_NAME
from vlatool.config.base import derivation_rules
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.loading.base import PairOptions
from vlatool.loading.vla.check import check_samples
from vlatool.loading.vla.config import VlaDataConfig
from vlatool.loading.vla.info import VlaInfo, load_info
from vlatool.loading.vla.pairs import VlaPairs
from vlatool.loading.vla.reader import DROP_REASONS, VlaReader
from vlatool.loading.vla.sample import VlaAssets, VlaSample


class VlaKind:
    """Samples with numbers for actions and future images; see `loading.base.DataKind`."""

    name: ClassVar[str] = "vla"
    Config: ClassVar[type[VlaDataConfig]] = VlaDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("samples",)
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS

    def load_info(self, config: VlaDataConfig, reporter: Reporter = NULL) -> VlaInfo:
        """Reads manifests, action tokenizers and one image of each data set."""
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
        first = info.first
        values = {
            **asdict(first.shape),
            "cameras": list(first.shape.cameras),
            "fps": first.fps,
            "codes_per_image": first.sizes.codes_per_image,
            "num_codes": first.sizes.codebook_size,
            "num_actions": first.sizes.action_ids,
            "codes_digest": first.codes_digest,
            "fast_digest": first.fast_digest,
            "profile_digest": first.profile.digest,
        }
        return config.model_copy(update=values), derivation_rules(config, values)

    def check_samples(
        self, config: VlaDataConfig, info: VlaInfo, reporter: Reporter = NULL
    ) -> None:
        """Checks lines and names of images, unless samples may be dropped."""
        if not config.max_dropped_share:
            check_samples(info, reporter)

    def contents(self, config: VlaDataConfig, sample: VlaSample) -> Mapping[str, Any]:
        """Returns images, action ids, codes and instruction."""
        del config
        conversation = sample.conversation
        return {
            "images": sample.images,
            "actions": conversation.action_ids,
            "codes": conversation.codes,
            "instruction": conversation.task,
        }

    def reader(self, config: VlaDataConfig, info: VlaInfo) -> VlaReader:
        """Returns a reader that decodes the past images."""
        del config
        return VlaReader(info)

    def make_assets(self, config: VlaDataConfig, info: VlaInfo) -> VlaAssets:
        """Returns sizes, action tokenizer and profile."""
        del config
        first = info.first
        return VlaAssets(
            first.sizes, first.shape, first.fps, first.fast, first.profile, first.codes_digest
        )

    def save_assets(self, config: VlaDataConfig, info: VlaInfo, folder: Path) -> None:
        """Writes the action tokenizer, if there is one, and the profile to fast/."""
        del config
        write_profile(folder / FAST_NAME / PROFILE_NAME, info.first.profile)
        if info.first.fast is not None:
            write_fast(folder / FAST_NAME, info.first.fast)

    def load_assets(self, config: VlaDataConfig, folder: Path) -> VlaAssets:
        """Reads the assets of a run."""
        fast = folder / FAST_NAME
        if not has_profile(fast):
            raise _unusable(fast / PROFILE_NAME, "is missing")
        profile = read_profile(str(fast))
        tokenizer = read_fast(fast) if is_fast(fast) else None
        if profile.digest != config.profile_digest:
            raise _unusable(fast / PROFILE_NAME, "is not the profile of the run")
        if tokenizer is not None and tokenizer.digest != config.fast_digest:
            raise _unusable(fast, "is not the action tokenizer of the run")
        fps = config.fps
        assert fps is not None
        return VlaAssets(config.sizes, config.shape, fps, tokenizer, profile, config.codes_digest)

    def pairs(
        self, config: VlaDataConfig, assets: VlaAssets, location: str, options: PairOptions
    ) -> VlaPairs:
        """Returns pairs of observation and target; see `loading.base.HasPairs`."""
        del options  # every sample has all that the policy sees
        return VlaPairs(config, assets, location)


def _unusable(path: Path, reason: str) -> DataError:
    return DataError.at(
        path,
        reason,
        hint="copy it again from the original run folder",
        code="data.broken_run",
    )
