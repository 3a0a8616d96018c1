"""The `resolve-config` workflow."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.builders.recording import Recorder
from vlatool.checkpoints.layout import RunDir
from vlatool.config.base import ConfigModel, derived_field
from vlatool.config.resolve import Override, load_config
from vlatool.errors import UsageError
from vlatool.training.config import TrainConfig
from vlatool.workflows.resolve_config import PresetsShowConfig, presets_show, resolve_config


class DerivingConfig(ConfigModel):
    width: int | None = derived_field("sum of fields", "Width.")

    def derive_from_data(self) -> tuple["DerivingConfig", Mapping[str, Any]]:
        return DerivingConfig(width=3), {"width": "sum of fields"}


@pytest.mark.parametrize(
    ("output", "file"), [("x.yaml", "x.yaml"), ("new/", "new/resolved_config.yaml")]
)
def test_output_is_a_file_or_a_folder(tmp_path, load, output, file):
    result = resolve_config(load(), output=output)
    assert (tmp_path / file).read_text() == result.yaml


def test_output_that_is_no_yaml_file_is_an_error(tmp_path, load):
    """For `train`, the same argument is the folder of a run."""
    with pytest.raises(UsageError) as caught:
        resolve_config(load(), output="runs/first")
    assert (caught.value.code, list(tmp_path.glob("runs"))) == ("usage.bad_value", [])


def test_document_has_config_unset_and_origins(load):
    shown = resolve_config(load()).text().rstrip()
    assert shown.endswith(": data, num_epochs or total_train_samples")
    document = resolve_config(load(set_=("name=x",)), explain=True).document()
    assert document["config"]["name"] == "x"
    assert document["unset"] == ["data", "num_epochs or total_train_samples"]
    assert document["origins"]["name"] == "command line, --set name"
    assert document["origins"]["hparams.lr"] == "default"


def test_derive_opens_the_data_and_returns_the_rule():
    result = resolve_config(load_config(DerivingConfig), derive=True, explain=True)
    assert result.document()["config"] == {"width": 3}
    assert result.document()["origins"] == {"width": "derived: sum of fields"}
    shown = resolve_config(load_config(DerivingConfig)).text()
    assert shown == "width: null  # derived: sum of fields\n"


def test_derive_needs_a_model_type():
    with pytest.raises(UsageError) as caught:
        resolve_config(load_config(TrainConfig), derive=True)
    assert caught.value.code == "usage.missing_key"


def test_published_resolve_options_are_followed_and_not_written(tmp_path):
    request = {"resolve_configs": True, "resolve_configs_path": str(tmp_path)}
    overrides = [Override(key, value, "command line") for key, value in request.items()]
    presets = ["diffusion-policy-tiny"]
    result = resolve_config(load_config(TrainConfig, presets=presets, overrides=overrides))
    assert result.output == tmp_path / "resolved_config.yaml"
    again = load_config(TrainConfig, files=[str(result.output)]).config
    assert (again.resolve_configs, again.resolve_configs_path) == (False, None)


def test_values_of_what_was_written_are_inherited_and_those_of_another_file_typed(tmp_path):
    """Values of a preset only cause warnings, and so do those of a file written from it."""
    first = load_config(TrainConfig, presets=["diffusion-policy-tiny"])
    written = resolve_config(first, output=str(tmp_path / "own.yaml")).output
    tree = first.config.model_dump(mode="json", exclude={"overwrite", "dry_run"})
    RunDir(tmp_path).write_config(tree)
    for path in (written, tmp_path / "config.yaml"):
        assert load_config(TrainConfig, files=[str(path)]).typed == frozenset()

    (tmp_path / "other.yaml").write_text("hparams: {lr: 1e-3}\n")
    files = [str(tmp_path / "other.yaml")]
    assert load_config(TrainConfig, files=files).typed == {"hparams.lr"}


def test_value_that_a_run_would_reject_is_reported():
    overrides = [Override("hparams", {"precision": "amp"}, "command line")]
    recorder = Recorder()
    resolve_config(load_config(TrainConfig, overrides=overrides), reporter=recorder)
    assert [code for code, _ in recorder.warnings] == ["broken_rule"]


def test_configuration_imports_nothing_heavy():
    code = (
        "import sys, vlatool.workflows.resolve_config; "
        "print([name for name in ('torch', 'numpy', 'boto3', 'rich') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_preset_is_shown_in_the_section_that_it_fills() -> None:
    shown = presets_show(PresetsShowConfig(name="vqgan-tiny"))
    assert shown.values.keys() >= {"model"}
    assert "model:" in shown.text()
