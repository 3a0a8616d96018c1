"""Robotics data as a kind of training data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.artifacts.provenance import read_preprocessing_config
from vlatool.artifacts.run_dir import RunDir
from vlatool.artifacts.stats import Statistics, read_stats, write_stats
from vlatool.config.base import derivation_rule
from vlatool.episode import PoseGroup
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import BROKEN_SAMPLE
from vlatool.loading.robotics.facts import DatasetFacts, data_folder, derive_data, read_facts
from vlatool.loading.robotics.normalizer import Normalizer
from vlatool.storage.atomic import write_bytes

if TYPE_CHECKING:
    from vlatool.loading.robotics.reader import RoboticsReader


@dataclass(frozen=True)
class RoboticsKept:
    """What a policy needs besides weights.

    Attributes:
        data: The data section of its run, derived.
        normalizer: Of that run.
        pose_groups: Which fields form poses.
        fps: Frames per second of its training data.
        statistics: Statistics it normalises with.
    """

    data: RoboticsDataConfig
    normalizer: Normalizer
    pose_groups: Sequence[PoseGroup]
    fps: float
    statistics: Statistics


class RoboticsKind:
    """`lbm` shards: see `loading.base.DataKind`."""

    name: ClassVar[str] = "robotics"
    Config: ClassVar[type[RoboticsDataConfig]] = RoboticsDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("dataset_manifest", "dataset_statistics")
    drop_reasons: ClassVar[tuple[str, ...]] = (BROKEN_SAMPLE,)

    def read_facts(self, config: RoboticsDataConfig) -> DatasetFacts:
        """Manifests, statistics and preprocessing options; local shards are whole."""
        return read_facts(config)

    def validation(self, config: RoboticsDataConfig) -> RoboticsDataConfig | None:
        """The same section for `val_dataset_manifest`, in stored order."""
        if not config.val_dataset_manifest:
            return None
        changes = {
            "dataset_manifest": config.val_dataset_manifest,
            "val_dataset_manifest": [],
            "dataset_statistics": [],
            "dataset_weighting": [],
            "dataset_modality": [],
            "shuffle": False,
        }
        return config.model_copy(update=changes)

    def derive(
        self, config: RoboticsDataConfig, facts: DatasetFacts
    ) -> tuple[RoboticsDataConfig, dict[str, str]]:
        """Cameras, pictures, fields, window and widths from the data."""
        derived = derive_data(config, facts)
        rules = {
            name: derivation_rule(field)
            for name, field in RoboticsDataConfig.model_fields.items()
            if getattr(derived, name) != getattr(config, name)
        }
        return derived, rules

    def reader(self, config: RoboticsDataConfig, facts: DatasetFacts) -> "RoboticsReader":
        """Reads and decodes samples."""
        from vlatool.loading.robotics.reader import RoboticsReader

        return RoboticsReader(config, facts)

    def prepared(self, config: RoboticsDataConfig, facts: DatasetFacts) -> RoboticsKept:
        """Scales and poses of the training data."""
        return _kept(config, facts.statistics, facts.statistics_past, facts.options[0])

    def keep(self, config: RoboticsDataConfig, facts: DatasetFacts, folder: Path) -> None:
        """Statistics of the fields that are used, and how the first data set was made."""
        run = RunDir(folder)
        names = dict.fromkeys([*config.action_fields, *config.proprioception_fields])
        write_stats([run.stats], {name: facts.statistics[name] for name in names})
        options = data_folder(config.dataset_manifest[0]).options_file
        write_bytes(run.options, options.read_bytes())

    def kept(self, config: RoboticsDataConfig, folder: Path) -> RoboticsKept:
        """What `keep` wrote; DataError where it is missing or broken."""
        run = RunDir(folder)
        statistics = read_stats(run.stats)
        options = read_preprocessing_config(folder)
        return _kept(config, statistics, int(options["past_lowdim_steps"]), options)


def _kept(
    config: RoboticsDataConfig, statistics: Statistics, past: int, options: Mapping[str, Any]
) -> RoboticsKept:
    return RoboticsKept(
        data=config,
        normalizer=Normalizer(config, statistics, past),
        pose_groups=[PoseGroup(**group) for group in options.get("pose_groups") or []],
        fps=float(options.get("fps") or 10.0),
        statistics=statistics,
    )
