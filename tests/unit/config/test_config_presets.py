"""Lookup of presets by name."""

from pathlib import Path

import pytest

from vlatool.config.presets import display_path, list_presets, preset_names, preset_path
from vlatool.errors import UsageError


@pytest.fixture
def roots(tmp_path: Path, write) -> list[Path]:
    write("ours/runs/lbm-hparams-4cams.yaml", "# Four cameras.\nname: x\n")
    write("ours/models/tiny.yaml", "name: ours\n")
    write("theirs/tiny.yaml", "name: theirs\n")
    write("theirs/acme.yaml", "\n#  Acme.\n")
    return [tmp_path / "ours", tmp_path / "theirs"]


@pytest.mark.parametrize("name", ["lbm-hparams-4cams", "lbm_hparams_4cams"])
def test_underscores_are_dashes_in_names(roots, name):
    assert preset_path(name, roots) == roots[0] / "runs/lbm-hparams-4cams.yaml"


def test_plugin_cannot_shadow_our_preset(roots):
    assert preset_path("tiny", roots) == roots[0] / "models/tiny.yaml"


@pytest.mark.parametrize("name", ["theirs/acme.yaml", "runs/lbm-hparams-4cams"])
def test_path_in_place_of_a_name(roots, name):
    assert preset_path(name, roots).is_file()


def test_list_has_folder_and_first_comment(roots):
    infos = {info.name: info for info in list_presets(roots)}
    assert (infos["lbm-hparams-4cams"].kind, infos["lbm-hparams-4cams"].description) == (
        "runs",
        "Four cameras.",
    )
    assert (infos["tiny"].kind, infos["tiny"].description) == ("models", "")
    assert infos["acme"].description == "Acme."
    assert preset_names(roots) == ["acme", "lbm-hparams-4cams", "tiny"]


@pytest.mark.parametrize("name", ["lbm-hparms-4cams", "nowhere/lbm-hparms-4cams.yaml"])
def test_unknown_name_suggests_the_nearest(roots, name):
    with pytest.raises(UsageError) as caught:
        preset_path(name, roots)
    assert caught.value.code == "usage.unknown_name"
    assert "lbm-hparams-4cams" in caught.value.hint


def test_displayed_path_starts_at_the_preset_folder(roots):
    assert display_path(roots[0] / "models/tiny.yaml", roots) == "presets/models/tiny.yaml"
    assert display_path(Path("conf/../a.yaml"), roots) == "a.yaml"


def test_preset_of_another_kind_is_an_error_and_only_allowed_ones_are_suggested(roots):
    with pytest.raises(UsageError) as caught:
        preset_path("tiny", roots, ["runs"])
    assert caught.value.code == "usage.conflict"
    with pytest.raises(UsageError) as caught:
        preset_path("tinny", roots, ["runs"])
    assert caught.value.details["known"] == ["lbm-hparams-4cams", "acme"]
    assert preset_path("acme", roots, ["runs"]).is_file(), "presets of plugins have no kind"
