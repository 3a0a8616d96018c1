"""A policy that sees one number and no image: rollouts, `load_policy`, and the contract check."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.toy_policy import (
    BROKEN_RESET,
    BROKEN_STEP,
    KILLED,
    LINE,
    LineEnv,
    PushPolicy,
    register_line,
)
from tests.builders.toy_runs import SITE, toy_config, toys
from vlatool.cli import app
from vlatool.episode import Observation
from vlatool.errors import DataError, PartialFailure, UsageError
from vlatool.evaluation.config import (
    ActionMap,
    CompareConfig,
    FieldMap,
    OpenLoopConfig,
    RolloutConfig,
)
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.controllers import PolicyController, check_environment
from vlatool.evaluation.environments import LocalEnvironments
from vlatool.evaluation.rollouts import (
    Rollout,
    RolloutPlan,
    RolloutProgress,
    Rollouts,
    rollout_report,
    run_rollouts,
)
from vlatool.events import NullProgress, NullReporter
from vlatool.models.policy import in_batches
from vlatool.testing.models import check_policy
from vlatool.workflows.eval_compare import compare
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.rollout import RolloutResult, rollout
from vlatool.workflows.train import train

KEYS = {"fields": {"x": FieldMap(key="x")}, "action": [ActionMap(field="push")]}
FIRST = 100
ERRORS = {BROKEN_RESET: "ValueError: no start", BROKEN_STEP: "RuntimeError: the motor is hot"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = toys(tmp_path_factory.mktemp("toys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / SITE))
        config = toy_config(root, "toy_push", "run", total_train_steps=2)
        train(config)
    register_line()
    return Path(config.save_path) / config.name


@pytest.fixture(autouse=True)
def site(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(run.parent / SITE))


def partial(options: RolloutConfig) -> RolloutResult:
    """Result of rollouts of which some episodes end with an error."""
    with pytest.raises(PartialFailure) as caught:
        rollout(options)
    assert caught.value.code == "partial.failed"
    assert isinstance(caught.value.result, RolloutResult)
    return caught.value.result


def config(run: Path, output: Path, **keys: Any) -> RolloutConfig:
    defaults = {"checkpoint": str(run), "env": LINE, "output": str(output), "seed": FIRST}
    defaults |= {"env_processes": 1}
    return RolloutConfig(**{**defaults, "episodes": 5, "batch_size": 2, **KEYS, **keys})


def test_rollouts_of_a_policy_without_images_that_keeps_the_contract(
    run: Path, tmp_path: Path
) -> None:
    check_policy(PushPolicy())
    words = {"env_options": {"words": "to the middle"}, "instruction_key": "task.words"}
    result = rollout(config(run, tmp_path / "words", **words))
    assert (result.figures["successes"], result.figures["errors"]) == (5, 0)
    assert result.document()["rollouts"][0]["instruction"] == "to the middle"
    missed = {"env_options": {"goals": [False, False]}, "success_key": "goals"}
    assert rollout(config(run, tmp_path / "missed", **missed)).figures["successes"] == 0


@pytest.mark.parametrize("source", [FieldMap(key="x", start=1), FieldMap(constant=[0.0, 1.0])])
def test_a_field_of_another_width_is_an_error(source: FieldMap, run: Path, tmp_path: Path) -> None:
    with fails("data.mismatch"):
        rollout(config(run, tmp_path, fields={"x": source}))


def test_open_loop_needs_data_with_recorded_actions(run: Path, tmp_path: Path) -> None:
    with fails("data.missing"):
        open_loop(OpenLoopConfig(checkpoint=str(run), data=str(tmp_path), output=str(tmp_path)))
    with pytest.raises(UsageError, match="have no held-out episodes"):
        open_loop(OpenLoopConfig(checkpoint=str(run), output=str(tmp_path)))


# groups and batches


def rollouts(policy: Any, parallel: int, broken: Sequence[int] = (), **keys: Any) -> list[Rollout]:
    """Rollouts of seven episodes."""
    plan = RolloutPlan(range(FIRST, FIRST + 7), lambda *_: "", "success", parallel=parallel)
    settings = RolloutConfig(**{"batch_size": 4, **KEYS, **keys})
    log = ImageSizes(policy.sees, print)
    progress = RolloutProgress(NullProgress())

    def make_controller(space: object) -> PolicyController:
        return PolicyController(policy, settings, log)

    with LocalEnvironments() as environments:
        env = environments.info(lambda: LineEnv(broken=broken))
        return run_rollouts(Rollouts(environments, env, make_controller, plan, progress))


@pytest.mark.parametrize("parallel", [2, 3, 7])
def test_rollouts_do_not_depend_on_the_size_of_their_group(parallel: int) -> None:
    expected = rollout_report(rollouts(PushPolicy(), 1))
    assert rollout_report(rollouts(PushPolicy(), parallel)) == expected


class CountingPolicy(PushPolicy):
    """Policy that records the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> Any:
        self.sizes.append(len(observations))
        return super().act(observations, seeds=seeds)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_batches_are_filled_up(count: int) -> None:
    policy = CountingPolicy()
    observations = [Observation(fields={"x": np.full((2, 1), float(n))}) for n in range(count)]
    chunks = in_batches(policy.act, observations, range(count), 4)
    assert policy.sizes == [4] * -(-count // 4)
    assert chunks["push"].shape == (count, 3, 1)


# errors of environments


@pytest.mark.parametrize("parallel", [1, 3])
def test_exception_of_an_environment_ends_one_episode(parallel: int) -> None:
    quiet = rollouts(PushPolicy(), parallel)
    broken = rollouts(PushPolicy(), parallel, [BROKEN_RESET, BROKEN_STEP])
    assert {row.seed: row.error for row in broken if row.error is not None} == ERRORS
    assert [row for row in broken if row.error is None] == [
        row for row in quiet if row.seed not in ERRORS
    ]
    assert [row.steps for row in broken if row.error is not None] == [0, 2]


def outputs(folder: Path) -> dict[str, bytes]:
    """Files of an output of rollouts, without those that hold times."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    named["report.json"] = named["report.json"].replace(str(folder).encode(), b"")
    return {name: data for name, data in named.items() if name[0] != "." and name != "timing.json"}


def test_processes_give_equal_files_and_an_ended_one_ends_one_episode(
    run: Path, tmp_path: Path
) -> None:
    keys = {"videos": 2, "contact_sheet_episodes": 1}
    options = {"broken": [BROKEN_RESET, BROKEN_STEP]}
    for count in (1, 2):
        name = f"{count} processes"
        result = partial(
            config(run, tmp_path / name, env_options=options, env_processes=count, **keys)
        )
        assert "ended by an error of the environment: 2" in result.text()
        assert ERRORS[BROKEN_STEP] in result.text()
    whole = outputs(tmp_path / "1 processes")
    assert outputs(tmp_path / "2 processes") == whole
    assert {*whole} == {"report.html", "report.json", "episodes.png", "videos/100-success.mp4"}
    document = json.loads(whole["report.json"])
    assert (document["episodes"], document["errors"], document["success_rate"]) == (3, 2, 1.0)
    assert {row["seed"]: row["error"] for row in document["rollouts"] if row["error"]} == ERRORS

    options = {"broken": [BROKEN_RESET, BROKEN_STEP, KILLED]}
    killed = partial(config(run, tmp_path / "killed", env_options=options, env_processes=2))

    rows = {row["seed"]: row for row in killed.figures["rollouts"]}
    assert rows[KILLED]["error"] == "the process of the environment ended with SIGKILL"
    others = {row["seed"]: row for row in document["rollouts"]}
    assert {**rows, KILLED: None} == {**others, KILLED: None}


def test_errors_in_all_episodes_are_no_success_rate(run: Path, tmp_path: Path) -> None:
    options = {"broken": [BROKEN_RESET]}
    with pytest.raises(PartialFailure, match="no start"):
        rollout(config(run, tmp_path, seed=BROKEN_RESET, episodes=1, env_options=options))
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == 1


class NanEnv(LineEnv):
    """Reports values that are not finite; the success of one seed too."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        success = np.float64("nan") if self.seed == FIRST + 1 else info["success"]
        return (
            observation,
            reward,
            terminated,
            truncated,
            info | {"success": success, "far": np.inf},
        )


def test_success_that_is_nan_is_an_error_of_its_episode(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "toys/Nan-v0" not in gymnasium.registry:
        gymnasium.register("toys/Nan-v0", NanEnv)
    words = ["eval", "rollout", str(run), "--env", "toys/Nan-v0", "--episodes", "3", "--json"]
    words += ["--seed", str(FIRST), "--env-processes", "1", "--output", str(tmp_path / "out")]
    (tmp_path / "map.yaml").write_text("fields: {x: {key: x}}\naction: [{field: push}]\n")
    assert app.run([*words, "--config", str(tmp_path / "map.yaml")]) == 4
    document = json.loads(capsys.readouterr().out)
    assert (document["error"]["code"], document["episodes"], document["errors"]) == (
        "partial.failed",
        2,
        1,
    )
    error = "'success' of the environment is not a number"
    assert [row["error"] for row in document["rollouts"]] == [None, error, None]
    stored = json.loads((tmp_path / "out/report.json").read_text())
    assert [row["info"]["far"] for row in stored["rollouts"]] == [None] * 3


class ArrayEnv(LineEnv):
    """Observes one array; rewards are negative, and one is not finite."""

    observation_space = spaces.Box(-9.0, 9.0, (1,), np.float64)

    def reset(self, **keys: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**keys)
        return observation["x"], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, _, _, info = super().step(action)
        rewards = (-3.0, -0.5, float("nan"), -2.0)
        return observation["x"], rewards[self.steps - 1], False, self.steps == 4, info


def test_one_array_is_observed_and_the_greatest_reward_reported(run: Path, tmp_path: Path) -> None:
    if "toys/Array-v0" not in gymnasium.registry:
        gymnasium.register("toys/Array-v0", ArrayEnv)
    mapped = {"env": "toys/Array-v0", "fields": {"x": FieldMap(key="observation")}}
    result = rollout(config(run, tmp_path, success_key="none", **mapped))
    assert [row["max_reward"] for row in result.figures["rollouts"]] == [-0.5] * 5
    assert result.figures["mean_max_reward"] == -0.5


class NanPolicy(PushPolicy):
    """Overflows for each second observation."""

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> Any:
        chunks = super().act(observations, seeds=seeds)
        chunks["push"][1::2, -1] = np.nan
        return chunks


def test_rollouts_of_actions_that_are_not_finite_end_with_the_field() -> None:
    with pytest.raises(DataError, match="not finite: push") as caught:
        rollouts(NanPolicy(), 3)
    assert caught.value.code == "data.not_finite"


class LoudEnv(LineEnv):
    """Prints at the reset."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        sys.stdout.write("welcome\n")
        return super().reset(**options)


def test_the_check_of_an_environment_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    check_environment(PushPolicy(), RolloutConfig(env=LINE, **KEYS), LoudEnv)
    assert capsys.readouterr().out == ""


# suites and comparisons


SUITE = "tasks:\n  whole: {episodes: 2}\n  short: {episodes: 27, max_steps: 2, seed: 7}\n"


class Killed(BaseException):
    """End of a run from outside."""


class KilledAtEnd(NullReporter, NullProgress):
    """Reporter that ends a run after 28 episodes, in the last group."""

    def __init__(self) -> None:
        self.left = 28

    def progress(self, name: str, total: int | None, unit: str) -> Any:
        del name, unit
        assert total == 29
        return self

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        del fields
        self.left -= amount
        if not self.left:
            raise Killed


def test_suite_has_figures_per_task_and_resumes_at_a_group(run: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(SUITE)
    keys = {"suite": str(tmp_path / "two.yaml"), "contact_sheet_episodes": 2, "videos": 1}
    result = rollout(config(run, tmp_path / "whole", **keys))
    tasks = result.figures["per_task"]
    assert [(name, row["episodes"]) for name, row in tasks.items()] == [("whole", 2), ("short", 27)]
    assert (tasks["whole"]["success_rate"], tasks["short"]["mean_steps"]) == (1.0, 2.0)
    assert result.figures["episodes"] == 29
    assert result.text().splitlines()[0].startswith("two: ")
    videos = {name for name in outputs(tmp_path / "whole") if name.startswith("videos/")}
    assert videos == {"videos/whole-100-success.mp4", "videos/short-7-failure.mp4"}

    other = config(run, tmp_path / "killed", **keys)
    with pytest.raises(Killed):
        rollout(other, reporter=KilledAtEnd())
    recorder = Recorder()
    rollout(other, reporter=recorder)
    assert recorder.last_bar.amounts == [1, 1, 27], "all groups but the last were done before"
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("tasks: {}", "usage.bad_value"),
        ("tasks: {a b: {episodes: 1}}", "config.invalid_value"),
        ("tasks: {a: {episodez: 1}}", "config.unknown_key"),
        ("tasks: {a: {env: other/Line-v0}}", "usage.unknown_name"),
    ],
)
def test_invalid_suite_is_an_error(run: Path, tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    with fails(code):
        rollout(config(run, tmp_path / "out", suite=str(tmp_path / "suite.yaml")))


@pytest.fixture(scope="module")
def policies(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of rollouts on the same starts, with and without enough steps."""
    root = tmp_path_factory.mktemp("policies")
    broken = {"broken": [BROKEN_STEP]}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(run.parent / SITE))
        for name, keys in {
            "a": {"max_steps": 2},
            "b": {"episodes": 9},
            "other starts": {"seed": 3, "episodes": 1},
            "other env": {"env_options": {"broken": []}, "episodes": 1},
        }.items():
            options = config(run, root / name, **{"env_options": broken, **keys})
            (partial if name == "b" else rollout)(options)
    report = json.loads((root / "b" / "report.json").read_text())
    (root / "report alone.json").write_text(json.dumps({**report, "env": "toys/Other-v0"}))
    (root / "damaged.json").write_text('{"rollouts": [{"seed": 1, "success": 3}]}')
    return root


def test_compare_pairs_the_starts_of_two_outputs(policies: Path) -> None:
    result = compare(CompareConfig(a=str(policies / "a"), b=str(policies / "b" / "report.json")))
    document = result.document()
    # The third step of one episode raises, which only b reaches.
    counts = ("starts", "successes_a", "successes_b", "errors", "unpaired")
    assert [document[name] for name in counts] == [4, 0, 4, 1, 4]
    assert (document["difference"], document["p_value"]) == (1.0, 0.125)
    assert {row["key"] for row in document["differences"]} == {"max_steps", "episodes"}
    assert "0 %  100 %   +100" in result.text()


def test_page_of_a_comparison_lists_the_starts_with_different_outcomes(
    policies: Path, tmp_path: Path
) -> None:
    paths = {"a": str(policies / "a"), "b": str(policies / "b")}
    compare(CompareConfig(**paths, html=str(tmp_path / "page.html")))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<span>failure</span></td><td") == 4
    assert f"vlatool eval compare {paths['a']} {paths['b']} --html" in page
    compare(CompareConfig(**paths, html=str(tmp_path / "page.html")))
    (tmp_path / "notes.html").write_text("mine")
    with fails("usage.bad_value"):
        compare(CompareConfig(**paths, html=str(tmp_path / "notes.html")))


def test_page_of_rollouts_has_every_start_and_the_command(policies: Path) -> None:
    page = (policies / "b" / "report.html").read_text()
    rows = json.loads((policies / "b" / "report.json").read_text())["rollouts"]
    assert page.count("the motor is hot") >= sum(row["error"] is not None for row in rows)
    assert f"{len(rows)} starts" in page
    assert "vlatool eval rollout" in page


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ("other starts", "data.no_samples"),
        ("other env", "data.mismatch"),
        ("report alone.json", "data.mismatch"),
        ("damaged.json", "data.no_source"),
        ("nowhere", "data.no_source"),
    ],
)
def test_outputs_without_common_starts_are_an_error(policies: Path, other: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        compare(CompareConfig(a=str(policies / "a"), b=str(policies / other)))
    assert caught.value.code == code
