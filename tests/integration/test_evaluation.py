"""Evaluation of a barely trained policy on data and in the built-in world."""

import json
import shutil
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
from tests.builders.pages import charts_of
from tests.builders.recording import Recorder
from tests.builders.training import (
    CAMERAS,
    HAND,
    HAND_COMMAND,
    ROT,
    XYZ,
    XYZ_COMMAND,
)
from vlatool.checkpoints.contract import CONTRACT
from vlatool.config.resolve import config_of
from vlatool.datasets.lbm.layout import (
    read_manifest,
    read_preprocessing_config,
    write_preprocessing_config,
)
from vlatool.episode import Observation, PoseGroup
from vlatool.errors import DataError
from vlatool.evaluation.config import ActionMap, FieldMap, OpenLoopConfig, RolloutConfig
from vlatool.evaluation.control import ImageSizes, chunk_seed
from vlatool.evaluation.facts import action_charts
from vlatool.evaluation.offline import evaluate_open_loop
from vlatool.evaluation.success import wilson_interval
from vlatool.events import NullProgress
from vlatool.loading.base import ActionField, RecordedPairs, Target
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsAssets
from vlatool.loading.robotics.reader import DecodedSample, SampleDecoder
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.media.tar_sample import StoredSample
from vlatool.models.policy import RoboticsPolicy
from vlatool.models.trained import open_trained
from vlatool.report.facts import Chart
from vlatool.transforms.rotations import matrix_from_rot6d
from vlatool.workflows.evaluate import recorded_pairs
from vlatool.workflows.open_loop import OpenLoopResult, open_loop
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.rollout import rollout
from vlatool.world.registration import ENVIRONMENT

RELATIVE = f"{XYZ_COMMAND}_relative"


@pytest.fixture(scope="module")
def run(trained_policy: Path) -> Path:
    return trained_policy


def decoded(data: Path, run: Path) -> list[DecodedSample]:
    """Decoded samples of the episodes, in the order of their manifest."""
    config = open_trained(str(run)).config.data
    decode = SampleDecoder(config)
    shards = read_manifest(data / "episodes" / "manifest.jsonl")
    stored = wds.WebDataset([str(shard.location) for shard in shards], shardshuffle=False)
    rng = np.random.default_rng(0)
    return [decode(StoredSample(sample.pop("__key__"), sample), rng) for sample in stored]


SHOWN = ("samples", "overall", "overall_by_step", "fields", "episodes")


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


def test_field_that_never_changes_is_constant_and_counts_in_its_own_unit(
    data: Path, run: Path
) -> None:
    trained = open_trained(str(run))
    policy = trained.policy()
    pairs = recorded_pairs(str(data), policy, trained, 0)
    log, config = ImageSizes(policy.sees, print), OpenLoopConfig(max_samples=2)

    def evaluated(fields: Mapping[str, ActionField]) -> Any:
        known = FieldsOf(pairs, fields)
        return evaluate_open_loop(policy, known, config, log, NullProgress())

    fields = {**pairs.fields, HAND_COMMAND: as_constant(pairs.fields[HAND_COMMAND], [0])}
    fields[RELATIVE] = as_constant(fields[RELATIVE], [1])
    report = evaluated(fields)
    errors = report.fields[HAND_COMMAND]["policy"]
    assert errors["normalised_mae"] == errors["mae"]
    widths = {name: len(field.is_constant) for name, field in fields.items()}
    total = sum(report.fields[name]["policy"]["normalised_mae"] * widths[name] for name in widths)
    assert report.overall["policy"] == pytest.approx(total / sum(widths.values()))
    lines = shown(report).splitlines()
    assert next(line for line in lines if HAND_COMMAND in line).split()[-1] == "constant"
    assert "   constant: y" in lines


def test_page_has_the_worst_and_the_best_episodes_with_images_and_every_dimension(
    report: dict[str, Any],
) -> None:
    page = Path(report["page"]).read_text()
    names = [episode["episode"] for episode in report["episodes"]]
    errors = [episode["error"] for episode in report["episodes"]]
    assert errors == sorted(errors, reverse=True)
    assert all(f"{name} (" in page for name in (*names[:2], *names[-2:]))
    moving = sum(field["moving_dimensions"] for field in report["fields"].values())
    shown = min(len(names), 4)
    lines = [line for chart in charts_of(page) for line in chart["lines"]]
    assert sum("dashed" in line for line in lines) >= shown * moving
    assert page.count('alt="') >= shown
    assert f"vlatool eval open-loop {Path(report['checkpoint']).parent.parent}" in page


@pytest.mark.parametrize("share", [1, 3])
def test_points_of_curves_have_the_frames_of_the_episode(data: Path, run: Path, share: int) -> None:
    trained = open_trained(str(run))
    policy = trained.policy()
    pairs = recorded_pairs(str(data), policy, trained, 0)
    config = OpenLoopConfig(max_samples=len(pairs) // share)
    log = ImageSizes(policy.sees, print)

    report = evaluate_open_loop(policy, pairs, config, log, NullProgress())

    errors = next(each for each in report.episodes if each.points[0].index == 0)
    assert [point.frame for point in errors.points] == list(range(0, 12, share))
    curves = errors.curves(pairs.fields).values()
    assert all(len(curve) == len(errors.points) for pair in curves for curve in pair)


def test_curves_are_drawn_at_the_times_of_their_points() -> None:
    seconds = np.array([0.0, 1, 2, 30])
    chart, *_ = action_charts({"wave": (np.zeros(4), np.arange(4.0))}, seconds)
    assert isinstance(chart, Chart)
    assert [curve.x.tolist() for curve in chart.lines] == [[0, 1, 2, 30]] * 2


def test_raw_and_averaged_weights_differ_and_are_named(
    report: dict[str, Any], data: Path, run: Path, tmp_path: Path
) -> None:
    keys = {"checkpoint": str(run), "data": str(data), "output": str(tmp_path)}
    raw = open_loop(OpenLoopConfig(**keys, weights="raw"))
    assert (report["weights"], raw.weights) == ("ema", "raw")
    assert raw.overall["policy"] != report["overall"]["policy"]
    assert raw.overall["mean_action"] == report["overall"]["mean_action"]
    again = open_loop(OpenLoopConfig(**{**keys, "output": str(tmp_path / "again")}))
    assert again.overall == report["overall"]


def test_data_without_a_field_of_the_policy_are_an_error(
    data: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "shards", tmp_path / "shards")
    statistics = json.loads((tmp_path / "shards/stats.json").read_text())
    del statistics[RELATIVE]
    (tmp_path / "shards/stats.json").write_text(json.dumps(statistics))
    with fails("data.unknown_field") as caught:
        open_loop(OpenLoopConfig(checkpoint=str(run), data=str(tmp_path)))
    assert caught.value.details["field"] == RELATIVE
    with fails("data.no_source"):
        open_loop(OpenLoopConfig(checkpoint=str(run), data="nowhere"))
    with fails("data.no_source"):
        open_loop(OpenLoopConfig(checkpoint="nowhere", data=str(data)))


def resized(data: Path, run: Path, tmp_path: Path, size: tuple[int, int]) -> OpenLoopConfig:
    """Evaluation on the recordings of some data, preprocessed to a (width, height)."""
    tree = {
        "format": "spartan",
        "sources": [str(data.parent / "raw")],
        "output": str(tmp_path / "small"),
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 6,
        "max_padding_right": 6,
        "camera_names": CAMERAS,
        "resize_images_size": size,
        "workers": 1,
    }
    preprocess(config_of(PreprocessConfig, tree))
    return OpenLoopConfig(
        checkpoint=str(run), data=str(tmp_path / "small"), output=str(tmp_path / "report")
    )


def test_data_of_another_size_are_resized_as_the_training_data_were(
    data: Path, run: Path, tmp_path: Path
) -> None:
    reporter = Recorder()
    result = open_loop(resized(data, run, tmp_path, (32, 32)), reporter=reporter)
    assert result.samples > 2
    assert [code for code, _ in reporter.warnings] == ["pictures_resized"] * 2
    assert all("32 x 32" in text and "64 x 64" in text for _, text in reporter.warnings)


def test_data_of_another_aspect_ratio_are_refused_unless_they_are_allowed(
    data: Path, run: Path, tmp_path: Path
) -> None:
    config = resized(data, run, tmp_path, (48, 32))
    with pytest.raises(DataError) as caught:
        open_loop(config)
    key = "cameras.scene_right_0.size"
    assert caught.value.code == "data.mismatch"
    assert caught.value.details == {"key": key, "trained": "64 x 64", "given": "48 x 32"}
    result = open_loop(config.model_copy(update={"allow": [key, "cameras.wrist_right_minus.size"]}))
    assert result.allowed is not None
    assert result.allowed[key] == {"trained": "64 x 64", "given": "48 x 32"}


def test_data_of_another_rate_and_meaning_are_refused(
    data: Path, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    options = read_preprocessing_config(other / "shards")
    write_preprocessing_config(other / "shards", {**options, "fps": 12.5})
    stored = json.loads((other / "conventions.json").read_text())
    for group in stored["groups"]:
        group |= {"relation": ["delta"], "scale": [], "residual": 0.0}
    (other / "conventions.json").write_text(json.dumps(stored))
    hand = f"conventions.{HAND_COMMAND}.0.relation"
    for allow, key in ([], "fps"), (["fps"], hand):
        config = OpenLoopConfig(checkpoint=str(run), data=str(other), allow=allow)
        with pytest.raises(DataError) as caught:
            open_loop(config)
        assert caught.value.details["key"] == key


def test_contract_of_a_run_is_what_its_other_files_say(run: Path) -> None:
    assert CONTRACT.read(run) == open_trained(str(run)).policy().contract


# rollouts


def rollout_config(run: Path, output: Path, **keys: Any) -> RolloutConfig:
    defaults = {"checkpoint": str(run), "env": ENVIRONMENT, "output": str(output)}
    return RolloutConfig(**{**defaults, "episodes": 2, "max_steps": 5, **keys})


def test_rollout_report(run: Path, tmp_path: Path) -> None:
    result = rollout(rollout_config(run, tmp_path / "a", contact_sheet_episodes=1))
    document = json.loads(Path(result.report).read_text())
    assert (document["episodes"], document["successes"]) == (2, 0)
    assert document["confidence_95"] == [0.0, round(wilson_interval(0, 2)[1], 4)]
    assert document["mean_steps"] == 5
    assert sum(row["episodes"] for row in document["per_instruction"].values()) == 2
    assert [row["seed"] for row in document["rollouts"]] == [100_000, 100_001]
    assert result.picture is not None
    with Image.open(result.picture) as image:
        assert image.height < 200
    again = rollout(rollout_config(run, tmp_path / "b", contact_sheet_episodes=1))
    assert Path(again.picture or "").read_bytes() == Path(result.picture).read_bytes()
    keys = {"instruction": "sing", "contact_sheet_episodes": 0}
    result = rollout(rollout_config(run, tmp_path / "c", **keys))
    assert (list(result.figures["per_instruction"]), result.picture) == (["sing"], None)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"env": "vlatool/Nothing-v0"}, "usage.unknown_name"),
        ({"env_options": {"cameras": 3}}, "usage.unsupported"),
        ({"env_options": {"kameras": 2}}, "usage.unsupported"),
        ({}, "usage.output_exists"),  # the folder has other files
    ],
)
def test_unknown_environment_options_and_folders_are_an_error(
    keys: dict[str, Any], code: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with fails(code):
        rollout(rollout_config(run, tmp_path, **keys))


def test_environment_is_made_with_its_options(run: Path, tmp_path: Path) -> None:
    """Images of a size that the policy was not trained on are resized, with a note."""
    recorder = Recorder()
    config = rollout_config(run, tmp_path, env_options={"size": "medium"})
    rollout(config, reporter=recorder)
    assert any("96" in note for note in recorder.notes)


FIELDS: Mapping[str, FieldMap] = {
    XYZ: FieldMap(key="proprio", start=0, stop=3),
    HAND: FieldMap(key="proprio", start=3, stop=4),
    ROT: FieldMap(constant=[1.0, 0.0, 0.0, 0.0, -1.0, 0.0]),
}
ACTION = [ActionMap(field=XYZ_COMMAND), ActionMap(field=HAND_COMMAND)]


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"action": []}, "data.unknown_field"),
        ({"action": [ActionMap(field=HAND)]}, "data.unknown_field"),
        ({"cameras": {CAMERAS[0]: "front"}}, "data.bad_request"),
        ({"fields": {**FIELDS, XYZ: FieldMap(key="propio")}}, "data.bad_request"),
        ({"fields": {**FIELDS, XYZ: FieldMap()}}, "data.unknown_field"),
        *(
            ({"fields": {key: FIELDS[key] for key in FIELDS if key != lost}}, "data.unknown_field")
            for lost in (XYZ, HAND, ROT)
        ),
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


def test_missing_reference_pose_is_an_error(run: Path) -> None:
    trained = open_trained(str(run))
    observation = Observation(
        images={name: np.zeros((2, 64, 64, 3), np.uint8) for name in CAMERAS},
        fields={XYZ: np.zeros((2, 3)), HAND: np.zeros((2, 1))},
    )
    with pytest.raises(DataError) as caught:
        trained.policy().act([observation], seeds=[0])
    assert (caught.value.code, caught.value.details["field"]) == ("data.unknown_field", ROT)


# metrics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 50, 0.0, 0.0713), (47, 50, 0.8378, 0.9794), (50, 50, 0.9287, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_golden(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_errors_are_those_computed_by_hand(report: dict[str, Any], data: Path, run: Path) -> None:
    trained, samples = open_trained(str(run)), decoded(data, run)
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
    recorded_steps = np.stack([sample.future_mask for sample in samples])[:, 1:]
    is_after_first = np.stack([sample.past_mask for sample in samples])[:, :1]
    recorded = np.stack([sample.fields[RELATIVE] for sample in samples])[:, 1:]
    by_hand = np.abs(np.concatenate(chunks) - recorded)[recorded_steps].mean(axis=0)
    errors = report["fields"][RELATIVE]["policy"]["mae_per_dimension"]
    np.testing.assert_allclose(errors, by_hand, rtol=1e-6)

    statistics = json.loads((run / "stats.json").read_text())
    assert report["samples"] == len(samples)
    assert report["fields"][RELATIVE]["names"] == ["x", "y", "z"]
    for field in (RELATIVE, HAND_COMMAND):
        windows = np.stack([sample.fields[field] for sample in samples])
        mean, std = (np.asarray(statistics[field][name]) for name in ("mean", "std"))
        for name, baseline in {"mean_action": mean, "copy_last": windows[:, :1]}.items():
            mask = recorded_steps & (is_after_first if name == "copy_last" else True)
            differences = np.abs(windows[:, 1:] - baseline)
            by_hand = differences[mask].mean(axis=0)
            errors = report["fields"][field][name]
            np.testing.assert_allclose(errors["mae_per_dimension"], by_hand, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(errors["mae"], by_hand.mean(), rtol=1e-9)
            normalized = (by_hand / std).mean()
            np.testing.assert_allclose(errors["normalised_mae"], normalized, rtol=1e-9)
            by_step = [
                (differences / std)[:, step][mask[:, step]].mean() for step in range(mask.shape[1])
            ]
            np.testing.assert_allclose(errors["normalised_mae_by_step"], by_step, rtol=1e-6)

    fields = report["fields"].values()
    weights = [field["moving_dimensions"] for field in fields]
    for name, value in report["overall"].items():
        errors = [field[name]["normalised_mae"] for field in fields]
        assert value == pytest.approx(np.average(errors, weights=weights))
        steps = [field[name]["normalised_mae_by_step"] for field in fields]
        expected = np.average(steps, weights=weights, axis=0)
        assert report["overall_by_step"][name] == pytest.approx(expected)


def shown(report: Any) -> str:
    """Text of a report of errors."""
    values = {name: getattr(report, name) for name in SHOWN}
    return OpenLoopResult("run", "ema", "data", page="", report="", **values).text()
