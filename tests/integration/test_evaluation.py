"""Evaluation of a barely trained policy on data and in the built-in world."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.training import (
    CAMERAS,
    HAND,
    HAND_COMMAND,
    ROT,
    XYZ,
    XYZ_COMMAND,
    tiny_config,
    world_shards,
)
from vlatool.artifacts.field_summary import dimension_label
from vlatool.artifacts.shards.format import read_manifest
from vlatool.episode import Observation, PoseGroup
from vlatool.errors import DataError
from vlatool.evaluation.config import ActionMap, FieldMap, OpenLoopConfig, RolloutConfig
from vlatool.evaluation.control import ResizeLog, chunk_seed
from vlatool.evaluation.offline import evaluate_open_loop
from vlatool.evaluation.plots import save_curves
from vlatool.evaluation.success import wilson_interval
from vlatool.events import NullProgress, NullReporter
from vlatool.loading.base import ActionField, RecordedPairs, Target
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsAssets
from vlatool.loading.robotics.reader import DecodedSample, SampleDecoder
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.models.policy import RoboticsPolicy
from vlatool.models.trained import open_trained
from vlatool.transforms.relative import relative_actions
from vlatool.transforms.rotations import matrix_from_rot6d
from vlatool.workflows.evaluate import OpenLoopResult, open_loop, recorded_pairs
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.rollout import rollout
from vlatool.workflows.train import train
from vlatool.world.registration import ENVIRONMENT

RELATIVE = f"{XYZ_COMMAND}_relative"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_shards(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "policy"
    train(tiny_config(data, folder, total_train_steps=3))
    return folder


class ProgressRecorder(NullReporter):
    """Reporter that records the amounts of a progress bar."""

    def __init__(self) -> None:
        self.total: int | None = 0
        self.advances: list[int] = []

    def progress(self, name: str, total: int | None, unit: str) -> "ProgressRecorder":
        del name, unit
        self.total = total
        return self

    def __enter__(self) -> "ProgressRecorder":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        del fields
        self.advances.append(amount)


def decoded(data: Path, run: Path) -> list[DecodedSample]:
    """Decoded samples of the episodes, in the order of their manifest."""
    config = open_trained(str(run)).config.data
    decode = SampleDecoder(config)
    shards = read_manifest(data / "episodes" / "manifest.jsonl")
    stored = wds.WebDataset([str(sample.path) for sample in shards], shardshuffle=False)
    return [decode(sample.pop("__key__"), sample, np.random.default_rng(0)) for sample in stored]


SHOWN = ("samples", "overall", "overall_by_step", "fields")


def as_constant(field: ActionField, dimensions: Sequence[int]) -> ActionField:
    """The field with dimensions that never change; others are left as they are."""
    constant = field.is_constant.copy()
    constant[[index for index in dimensions if index < len(constant)]] = True
    return replace(field, is_constant=constant)


@dataclass(frozen=True)
class FieldsOf:
    """Recorded pairs with other statistics of their fields."""

    pairs: RecordedPairs
    fields: Mapping[str, ActionField]

    @property
    def fps(self) -> float:
        return self.pairs.fps

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, Target]]:
        return self.pairs.read(indices)


# open loop


@pytest.fixture(scope="module")
def report(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("eval") / "loop"
    result = open_loop(OpenLoopConfig(checkpoint=str(run), data=str(data), output=str(output)))
    document = json.loads(Path(result.report).read_text())
    assert document == json.loads(json.dumps(result.document()))
    return document


def test_baselines_are_those_computed_by_hand(
    report: dict[str, Any], data: Path, run: Path
) -> None:
    samples = decoded(data, run)
    mask = np.stack([sample.future_mask[1:] for sample in samples])
    assert report["samples"] == len(samples)
    statistics = json.loads((run / "stats.json").read_text())
    for field in (RELATIVE, HAND_COMMAND):
        windows = np.stack([sample.fields[field] for sample in samples])
        recorded = windows[:, 1:]
        mean = np.asarray(statistics[field]["mean"])
        baselines = {"mean_action": mean, "copy_last": windows[:, :1]}
        for name, baseline in baselines.items():
            by_hand = np.abs(recorded - baseline)[mask].mean(axis=0)
            errors = report["fields"][field][name]
            np.testing.assert_allclose(errors["mae_per_dimension"], by_hand, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(errors["mae"], by_hand.mean(), rtol=1e-9)
            normalized = by_hand / np.asarray(statistics[field]["std"])
            np.testing.assert_allclose(errors["normalised_mae"], normalized.mean(), rtol=1e-9)


def test_error_of_the_policy_is_that_computed_by_hand(
    report: dict[str, Any], data: Path, run: Path
) -> None:
    trained = open_trained(str(run))
    samples = decoded(data, run)
    chunks: list[np.ndarray] = []
    for start in range(0, len(samples), 32):
        observations = [
            Observation(
                images={name: sample.images[n::2] for n, name in enumerate(CAMERAS)},
                fields={name: sample.fields[name][:2] for name in (XYZ, HAND)},
                instruction=sample.instruction,
                past_actions={name: sample.fields[name][:1] for name in (RELATIVE, HAND_COMMAND)},
                past_mask=sample.past_mask[:1],
                is_preprocessed=True,
            )
            for sample in samples[start : start + 32]
        ]
        seeds = [chunk_seed(0, start + row) for row in range(len(observations))]
        chunks.append(trained.policy().act(observations, seeds=seeds)[RELATIVE])
    recorded = np.stack([sample.fields[RELATIVE] for sample in samples])[:, 1:]
    mask = np.stack([sample.future_mask for sample in samples])[:, 1:]
    by_hand = np.abs(np.concatenate(chunks) - recorded)[mask].mean(axis=0)
    errors = report["fields"][RELATIVE]["policy"]["mae_per_dimension"]
    np.testing.assert_allclose(errors, by_hand, rtol=1e-6)


def test_error_of_a_step_is_that_computed_by_hand(
    report: dict[str, Any], data: Path, run: Path
) -> None:
    samples = decoded(data, run)
    statistics = open_trained(str(run)).assets.statistics[RELATIVE]
    recorded = np.stack([sample.fields[RELATIVE] for sample in samples])[:, 1:]
    mask = np.stack([sample.future_mask for sample in samples])[:, 1:]
    errors = np.abs(recorded - np.asarray(statistics["mean"])) / np.asarray(statistics["std"])
    by_hand = [errors[:, step][mask[:, step]].mean() for step in range(mask.shape[1])]
    reported = report["fields"][RELATIVE]["mean_action"]["normalised_mae_by_step"]
    np.testing.assert_allclose(reported, by_hand, rtol=1e-6)


def test_overall_is_the_mean_over_moving_dimensions(report: dict[str, Any]) -> None:
    fields = report["fields"].values()
    for name, value in report["overall"].items():
        weights = [field["moving_dimensions"] for field in fields]
        errors = [field[name]["normalised_mae"] for field in fields]
        assert value == pytest.approx(np.average(errors, weights=weights))
        steps = [field[name]["normalised_mae_by_step"] for field in fields]
        expected = np.average(steps, weights=weights, axis=0)
        assert report["overall_by_step"][name] == pytest.approx(expected)


def test_field_that_never_changes_is_constant_and_in_no_mean(data: Path, run: Path) -> None:
    trained = open_trained(str(run))
    policy = trained.policy()
    pairs = recorded_pairs(str(data), policy, trained, 0)
    fields = {**pairs.fields, HAND_COMMAND: as_constant(pairs.fields[HAND_COMMAND], [0])}
    fields[RELATIVE] = as_constant(fields[RELATIVE], [1])
    known = FieldsOf(pairs, fields)

    config = OpenLoopConfig(max_samples=2)
    log = ResizeLog(policy.sees, print)
    report = evaluate_open_loop(policy, known, config, log, NullProgress())

    errors = report.fields[HAND_COMMAND]["policy"]
    assert (errors["mae"], errors["normalised_mae"]) == (None, None)
    varying = report.fields[RELATIVE]["policy"]
    assert report.overall["policy"] == pytest.approx(varying["normalised_mae"])
    shown = {name: getattr(report, name) for name in SHOWN}
    lines = OpenLoopResult("run", "ema", "data", picture="", report="", **shown).text().splitlines()
    assert next(line for line in lines if HAND_COMMAND in line).split()[1:] == ["constant"]
    assert "   constant: y" in lines


def test_overall_of_constant_fields_alone_is_unknown(data: Path, run: Path) -> None:
    trained = open_trained(str(run))
    policy = trained.policy()
    pairs = recorded_pairs(str(data), policy, trained, 0)
    fields = {name: as_constant(field, range(9)) for name, field in pairs.fields.items()}
    log = ResizeLog(policy.sees, print)

    config = OpenLoopConfig(max_samples=2)
    report = evaluate_open_loop(policy, FieldsOf(pairs, fields), config, log, NullProgress())

    assert set(report.overall.values()) == {None}
    shown = {name: getattr(report, name) for name in SHOWN}
    text = OpenLoopResult("run", "ema", "data", picture="", report="", **shown).text()
    assert "0.0000" not in text


def test_curves_are_saved_as_an_image(report: dict[str, Any]) -> None:
    with Image.open(report["picture"]) as image:
        assert image.format == "PNG"
        assert image.width > 500


def test_same_seed_gives_the_same_errors(
    report: dict[str, Any], data: Path, run: Path, tmp_path: Path
) -> None:
    config = OpenLoopConfig(checkpoint=str(run), data=str(data), output=str(tmp_path))
    assert open_loop(config).overall == report["overall"]


def test_number_of_samples_is_limited(data: Path, run: Path, tmp_path: Path) -> None:
    result = open_loop(
        OpenLoopConfig(
            checkpoint=str(run), data=str(data), output=str(tmp_path), max_samples=7, batch_size=2
        )
    )
    assert result.samples == 7


def test_progress_ends_at_the_number_of_samples(data: Path, run: Path, tmp_path: Path) -> None:
    progress = ProgressRecorder()
    config = OpenLoopConfig(
        checkpoint=str(run), data=str(data), output=str(tmp_path), max_samples=7, batch_size=2
    )
    open_loop(config, reporter=progress)
    assert (progress.total, sum(progress.advances)) == (7, 7)


@pytest.mark.parametrize("share", [1, 3])
def test_points_of_curves_have_the_frames_of_the_episode(data: Path, run: Path, share: int) -> None:
    trained = open_trained(str(run))
    policy = trained.policy()
    pairs = recorded_pairs(str(data), policy, trained, 0)
    config = OpenLoopConfig(max_samples=len(pairs) // share)
    log = ResizeLog(policy.sees, print)

    report = evaluate_open_loop(policy, pairs, config, log, NullProgress())

    assert report.frames.tolist() == list(range(0, 12, share))
    assert all(
        len(curve) == len(report.frames) for pair in report.curves.values() for curve in pair
    )


def test_curves_are_drawn_at_the_times_of_their_points(tmp_path: Path) -> None:
    curve = {"wave": (np.zeros(4), np.ones(4))}
    for name, seconds in (("thin", [0.0, 1.0, 2.0, 3.0]), ("whole", [0.0, 1.0, 2.0, 30.0])):
        save_curves(tmp_path / f"{name}.png", "title", curve, np.array(seconds))
    assert (tmp_path / "thin.png").read_bytes() != (tmp_path / "whole.png").read_bytes()


def test_dimensions_are_named_in_report_and_curves(report: dict[str, Any]) -> None:
    assert report["fields"][RELATIVE]["names"] == ["x", "y", "z"]
    assert dimension_label(RELATIVE, 2, 3, {}) == f"{RELATIVE}: z"


def test_raw_and_averaged_weights_differ_and_are_named(
    report: dict[str, Any], data: Path, run: Path, tmp_path: Path
) -> None:
    config = OpenLoopConfig(
        checkpoint=str(run), data=str(data), output=str(tmp_path), weights="raw"
    )
    raw = open_loop(config)
    assert (report["weights"], raw.weights) == ("ema", "raw")
    assert raw.overall["policy"] != report["overall"]["policy"]
    assert raw.overall["mean_action"] == report["overall"]["mean_action"]


def test_data_without_a_field_of_the_policy_are_an_error(
    data: Path, run: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in (data / "shards").iterdir():
        (shards / path.name).write_bytes(path.read_bytes())
    statistics = json.loads((shards / "stats.json").read_text())
    del statistics[RELATIVE]
    (shards / "stats.json").write_text(json.dumps(statistics))
    with pytest.raises(DataError) as caught:
        open_loop(OpenLoopConfig(checkpoint=str(run), data=str(tmp_path)))
    assert (caught.value.code, caught.value.details["field"]) == ("data.unknown_field", RELATIVE)


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"data": "nowhere"}, "data.no_manifest"), ({"checkpoint": "nowhere"}, "data.no_checkpoint")],
)
def test_missing_inputs_are_an_error(
    changes: dict[str, str], code: str, data: Path, run: Path
) -> None:
    with fails(code):
        open_loop(OpenLoopConfig(**{"checkpoint": str(run), "data": str(data), **changes}))


def test_data_of_another_size_are_resized_as_the_training_data_were(
    data: Path, run: Path, tmp_path: Path
) -> None:
    tree = {
        "format": "spartan",
        "sources": [str(data.parent / "raw")],
        "output": str(tmp_path / "small"),
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 6,
        "max_padding_right": 6,
        "camera_names": CAMERAS,
        "resize_images_size": (48, 32),
        "workers": 1,
    }
    preprocess(PreprocessConfig.specialize(tree).model_validate(tree))
    reporter = Recorder()
    config = OpenLoopConfig(
        checkpoint=str(run), data=str(tmp_path / "small"), output=str(tmp_path / "report")
    )
    result = open_loop(config, reporter=reporter)
    assert result.samples > 2
    assert [code for code, _ in reporter.warnings] == ["pictures_resized"] * 2
    assert all("48 x 32" in text and "64 x 64" in text for _, text in reporter.warnings)


# rollouts


def rollout_config(run: Path, output: Path, **keys: Any) -> RolloutConfig:
    defaults = {"checkpoint": str(run), "env": ENVIRONMENT, "output": str(output)}
    return RolloutConfig(**{**defaults, "episodes": 2, "max_steps": 5, **keys})


def test_rollout_report(run: Path, tmp_path: Path) -> None:
    result = rollout(rollout_config(run, tmp_path, contact_sheet_episodes=1))
    document = json.loads(Path(result.report).read_text())
    assert (document["episodes"], document["successes"]) == (2, 0)
    assert document["confidence_95"] == [0.0, round(wilson_interval(0, 2)[1], 4)]
    assert document["mean_steps"] == 5
    assert sum(row["episodes"] for row in document["per_instruction"].values()) == 2
    assert [row["seed"] for row in document["rollouts"]] == [100_000, 100_001]
    assert result.picture is not None
    with Image.open(result.picture) as image:
        assert image.height < 200


def test_rollouts_repeat_with_their_seed(run: Path, tmp_path: Path) -> None:
    documents = []
    for name in ("a", "b"):
        rollout(rollout_config(run, tmp_path / name, contact_sheet_episodes=1))
        documents.append((tmp_path / name / "episodes.png").read_bytes())
    assert documents[0] == documents[1]


class Killed(BaseException):
    """End of a run from outside."""


class KilledAfter(ProgressRecorder):
    """Progress recorder that kills the run after a number of episodes."""

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self.left = episodes

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        super().advance(amount, **fields)
        self.left -= amount
        if not self.left:
            raise Killed


def test_killed_rollouts_resume_with_the_next_group(run: Path, tmp_path: Path) -> None:
    keys = {"episodes": 27, "max_steps": 2, "contact_sheet_episodes": 27}
    rollout(rollout_config(run, tmp_path / "whole", **keys))
    config = rollout_config(run, tmp_path / "out", **keys)
    with pytest.raises(Killed):
        rollout(config, reporter=KilledAfter(26))

    progress = ProgressRecorder()
    result = rollout(config, reporter=progress)

    assert progress.advances == [1, 1, 25], "the first group of 25 was done before"
    whole = json.loads((tmp_path / "whole/report.json").read_text())
    assert result.document()["rollouts"] == whole["rollouts"]
    sheets = [(tmp_path / name / "episodes.png").read_bytes() for name in ("whole", "out")]
    assert sheets[0] == sheets[1]


def test_rollouts_into_a_foreign_folder_are_an_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with fails("usage.output_exists"):
        rollout(rollout_config(run, tmp_path))


def test_configured_instruction_replaces_that_of_the_environment(run: Path, tmp_path: Path) -> None:
    config = rollout_config(run, tmp_path, instruction="sing", contact_sheet_episodes=0)
    result = rollout(config)
    assert list(result.figures["per_instruction"]) == ["sing"]
    assert result.picture is None


def test_unknown_environment_is_an_error(run: Path, tmp_path: Path) -> None:
    with fails("usage.unknown_env"):
        rollout(rollout_config(run, tmp_path, env="vlatool/Nothing-v0"))


def test_environment_is_made_with_its_options(run: Path, tmp_path: Path) -> None:
    """Images of a size that the policy was not trained on are resized, with a note."""
    recorder = Recorder()
    config = rollout_config(run, tmp_path, env_options={"size": "medium"})
    rollout(config, reporter=recorder)
    assert any("96" in note for note in recorder.notes)


@pytest.mark.parametrize("options", [{"cameras": 3}, {"kameras": 2}])
def test_unknown_options_of_an_environment_are_an_error(
    options: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    with fails("usage.env_options"):
        rollout(rollout_config(run, tmp_path, env_options=options))


FIELDS: Mapping[str, FieldMap] = {
    XYZ: FieldMap(key="proprio", start=0, stop=3),
    HAND: FieldMap(key="proprio", start=3, stop=4),
    ROT: FieldMap(constant=[1.0, 0.0, 0.0, 0.0, -1.0, 0.0]),
}
ACTION = [ActionMap(field=XYZ_COMMAND), ActionMap(field=HAND_COMMAND)]


@pytest.mark.parametrize("field", [XYZ, HAND, ROT])
def test_field_that_is_not_mapped_is_an_error(field: str, run: Path, tmp_path: Path) -> None:
    fields = {name: field_map for name, field_map in FIELDS.items() if name != field}
    with pytest.raises(DataError) as caught:
        rollout(rollout_config(run, tmp_path, fields=fields, action=ACTION))
    assert (caught.value.code, caught.value.details["field"]) == ("data.unmapped_field", field)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"action": []}, "data.unmapped_action"),
        ({"action": [ActionMap(field=HAND)]}, "data.unknown_field"),
        ({"cameras": {CAMERAS[0]: "front"}}, "data.unknown_observation"),
        ({"fields": {**FIELDS, XYZ: FieldMap(key="propio")}}, "data.unknown_observation"),
        ({"fields": {**FIELDS, XYZ: FieldMap()}}, "data.unmapped_field"),
    ],
)
def test_invalid_mapping_is_an_error(
    keys: dict[str, Any], code: str, run: Path, tmp_path: Path
) -> None:
    config = rollout_config(run, tmp_path, **{"fields": FIELDS, "action": ACTION, **keys})
    with fails(code):
        rollout(config)


# relative to absolute


class ConstantSampler:
    """Sampler that always returns the same normalized chunk."""

    def __init__(self, chunk: np.ndarray) -> None:
        self._chunk = torch.from_numpy(chunk)

    def __call__(self, batch: Any, *, steps: int, rng: Any) -> torch.Tensor:
        del steps, rng
        return self._chunk.expand(len(batch["samples"]), -1, -1)


def make_assets(
    data: RoboticsDataConfig, statistics: Any, groups: list[PoseGroup]
) -> RoboticsAssets:
    """Assets of a run with these fields."""
    return RoboticsAssets(data, Normalizer(data, statistics, 1), groups, 10.0, statistics)


@pytest.mark.parametrize("parts", ["both", "position", "rotation"])
def test_relative_actions_become_absolute_poses(parts: str) -> None:
    xyz, rot = "robot__action__poses__a__xyz", "robot__action__poses__a__rot_6d"
    actual_xyz, actual_rot = (name.replace("action", "actual") for name in (xyz, rot))
    widths = {"both": {xyz: 3, rot: 6}, "position": {xyz: 3}, "rotation": {rot: 6}}[parts]
    fields = [f"{name}_relative" for name in widths]
    data = RoboticsDataConfig(
        action_fields=fields,
        proprioception_fields=[actual_xyz],
        lowdim_past_timesteps=1,
        lowdim_future_timesteps=2,
    )
    rng = np.random.default_rng(0)
    statistics = {
        name: {"mean": [0.5] * width, "std": [2.0] * width, "min": [-9.0] * width,
               "max": [9.0] * width}
        for name, width in [*zip(fields, widths.values(), strict=True), (actual_xyz, 3)]
    }  # fmt: skip
    chunk = rng.normal(size=(1, 4, sum(widths.values())))
    group = PoseGroup("arm", xyz, rot)
    policy = RoboticsPolicy(
        ConstantSampler(chunk),
        lambda samples: {"samples": samples},
        make_assets(data, statistics, [group]),
    )
    assert {actual_xyz, actual_rot} <= policy.sees.fields.keys()
    # Source: reference/policy 3.2, the reference pose of the first two rows
    position, rotation = np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
    observation = Observation(
        fields={actual_xyz: np.tile(position, (2, 1)), actual_rot: np.tile(rotation, (2, 1))},
    )
    actions = policy.act([observation], seeds=[0])
    assert actions.keys() == widths.keys()
    physical = (chunk * 2.0 + 0.5)[:, 1:]
    matrix = matrix_from_rot6d(rotation)
    if xyz in widths:
        expected = [matrix @ row + position for row in physical[0, :, :3]]
        np.testing.assert_allclose(actions[xyz][0], expected, rtol=1e-6)
    if rot in widths:
        expected = [(matrix @ matrix_from_rot6d(row))[:2].ravel() for row in physical[0, :, -6:]]
        np.testing.assert_allclose(actions[rot][0], expected, rtol=1e-6, atol=1e-9)


def test_past_actions_are_relative_to_the_current_pose() -> None:
    xyz, rot = "robot__action__poses__a__xyz", "robot__action__poses__a__rot_6d"
    actual_xyz, actual_rot = (name.replace("action", "actual") for name in (xyz, rot))
    group = PoseGroup("arm", xyz, rot)
    # Source: formats/lbm-preprocessing 4
    fields = {
        actual_xyz: np.array([[1.0, 2.0, 3.0]]),
        actual_rot: np.array([[0.0, 1, 0, -1, 0, 0]]),
    }
    actions = {
        xyz: np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 3.0]]),
        rot: np.array([[0.0, 1, 0, -1, 0, 0], [1.0, 0, 0, 0, 1, 0]]),
        "hand": np.array([[0.1], [0.0]]),
    }
    relative = relative_actions(actions, fields, [group])
    np.testing.assert_allclose(relative[f"{xyz}_relative"], [[0, 0, 0], [0, 1, 0]], atol=1e-12)
    expected = [[1, 0, 0, 0, 1, 0], [0, -1, 0, 1, 0, 0]]
    np.testing.assert_allclose(relative[f"{rot}_relative"], expected, atol=1e-12)
    np.testing.assert_array_equal(relative["hand"], actions["hand"])


def test_missing_reference_pose_is_an_error(run: Path) -> None:
    trained = open_trained(str(run))
    observation = Observation(
        images={name: np.zeros((2, 64, 64, 3), np.uint8) for name in CAMERAS},
        fields={XYZ: np.zeros((2, 3)), HAND: np.zeros((2, 1))},
    )
    with pytest.raises(DataError) as caught:
        trained.policy().act([observation], seeds=[0])
    assert (caught.value.code, caught.value.details["field"]) == ("data.missing_field", ROT)


# metrics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 50, 0.0, 0.0713), (47, 50, 0.8378, 0.9794), (50, 50, 0.9287, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_golden(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
