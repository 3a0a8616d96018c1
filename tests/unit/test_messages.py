"""Texts of messages that several commands share."""

from pathlib import Path

import pytest
import torch

from vlatool.checkpoints.experiment.layout import is_experiment
from vlatool.checkpoints.layout import is_run
from vlatool.checkpoints.locations import with_run_above
from vlatool.cli.app import run
from vlatool.config.coerce import value_text
from vlatool.errors import DataError
from vlatool.jobs.ownership import option_differences
from vlatool.models.weights import init_state_dict
from vlatool.plugins import did_you_mean
from vlatool.report.text import few_text
from vlatool.storage.uri import path_hint


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("x", "x"),
        (1e-4, "0.0001"),
        (["a", None], "[a, null]"),
        ({"a": ["b"]}, "{a: [b]}"),
    ],
)
def test_values_have_the_spelling_of_configuration_files(value: object, text: str) -> None:
    assert value_text(value) == text
    assert option_differences({"key": value}, {"key": 0}) == [f"key {text} (now 0)"]


def test_long_values_and_lists_of_names_are_shortened() -> None:
    names = [f"robot__field_{index}" for index in range(50)]
    assert len(value_text(names)) < 200
    assert few_text(names).endswith("robot__field_5, and 44 more")
    assert few_text(names[:2]) == "robot__field_0, robot__field_1"
    assert did_you_mean("xyz", names).endswith(", and 42 more")


def test_experiment_without_its_model_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    assert is_run(tmp_path)
    (tmp_path / "checkpoints/checkpoint_3.pt").touch()
    assert is_experiment(tmp_path)
    assert not is_run(tmp_path)


def test_missing_location_names_a_similar_one_and_the_folder_that_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "demos").mkdir()
    assert path_hint(tmp_path / "dmos") == f"did you mean demos, in {tmp_path}?"
    assert path_hint(tmp_path / "runs/a/b") == f"there is no runs in {tmp_path}"
    (tmp_path / "demo.hdf5").touch()
    assert path_hint(tmp_path / "demo.hdf5/ep1").startswith(f"{tmp_path / 'demo.hdf5'} is a file")


def test_weights_that_do_not_fit_name_the_networks_to_leave_out() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    weights = module.state_dict() | {"b.weight": torch.zeros(2, 1)}
    with pytest.raises(DataError) as caught:
        init_state_dict(module, weights, Path("weights"), [])
    assert caught.value.hint.endswith("or train these anew: --init-except b")


def test_rule_of_a_section_says_nothing_of_mappings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["resolve-config", "--preset", "world-pick", "--hparams.lr", "0"]) == 2
    message = capsys.readouterr().err
    assert "lr_cooldown_end" in message
    assert "a mapping" not in message


def test_written_configuration_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "resolved.yaml"
    assert run(["resolve-config", "--preset", "world-pick", "--output", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: written")
    assert "model:" in path.read_text()


def test_checkpoint_named_from_its_own_folder_has_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "run/checkpoints/step_00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    monkeypatch.chdir(checkpoint.parent)
    assert with_run_above(Path(checkpoint.name)) == checkpoint
    monkeypatch.chdir(tmp_path)
    relative = checkpoint.relative_to(tmp_path)
    assert with_run_above(relative) == relative
