"""Layers, origins, groups and flat sections."""

import pytest

from vlatool.config.base import ConfigModel
from vlatool.config.resolve import Override, load_config
from vlatool.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({}, 1e-4),
        ({"presets": ("job",)}, 1.0),
        ({"presets": ("job",), "files": ("a.yaml",)}, 2.0),
        ({"presets": ("job",), "files": ("a.yaml", "b.yaml")}, 3.0),
        ({"presets": ("job",), "files": ("b.yaml", "a.yaml")}, 2.0),
        ({"files": ("a.yaml",), "set_": ("hparams.lr=4", "hparams.lr=5")}, 5.0),
    ],
)
def test_later_layers_win(write, load, layers, expected):
    write("presets/runs/job.yaml", "hparams: {lr: 1}")
    write("a.yaml", "hparams: {lr: 2}")
    write("b.yaml", "hparams: {lr: 3}")
    layers = dict(layers)
    assert load(*layers.pop("files", ()), **layers).config.hparams.lr == expected


def test_mappings_merge_and_lists_replace(write, load):
    write("a.yaml", "hparams: {lr: 2, steps: 3}\ncameras: [a, b]")
    write("b.yaml", "hparams: {steps: 4}\ncameras: [c]")
    config = load("a.yaml", "b.yaml").config
    assert (config.hparams.lr, config.hparams.steps, config.cameras) == (2.0, 4, ["c"])


def test_values_know_file_and_line(write, load):
    write("presets/runs/job.yaml", "# a job\nhparams:\n  lr: 1\nname: x\n")
    write("conf/train.yaml", "\nmodel:\n  backbone: !include ../parts/vit.yaml\ncameras:\n- a\n")
    write("parts/vit.yaml", "type: vit_backbone\nwidth: 8\n")
    origins = load(
        "conf/train.yaml", presets=("job",), set_=("num_epochs=1", "name=y", "hparams.steps=3")
    ).origins
    assert origins == {
        "hparams.lr": "presets/runs/job.yaml:3",
        "hparams.steps": "command line, --set hparams.steps",
        "name": "command line, --set name",
        "num_epochs": "command line, --set num_epochs",
        "model.backbone.type": "parts/vit.yaml:1",
        "model.backbone.width": "parts/vit.yaml:2",
        "cameras": "conf/train.yaml:5",
    }


def test_section_is_inherited_by_the_same_type_and_dropped_by_another(write, load):
    write("a.yaml", "model: {backbone: {type: vit_backbone, width: 8}}")
    write("b.yaml", "model: {backbone: {type: vit_backbone, depth: 9}}")
    backbone = load("a.yaml", "b.yaml").config.model.backbone
    assert (backbone.width, backbone.depth) == (8, 9)
    for files in (("a.yaml",), ()):
        other = load(*files, set_=("model.backbone.type=clip_backbone",)).config.model.backbone
        assert (other.type, other.hf_pretrained) == ("clip_backbone", "clip")
    part = load(set_=("model.backbone.depth=7",)).config.model.backbone
    assert (part.type, part.width, part.depth) == ("vit_backbone", 48, 7)


def test_later_choice_of_an_exclusive_group_removes_the_earlier(write, load, problems):
    write("a.yaml", "num_epochs: 3\ntotal_train_samples: null")
    config = load("a.yaml", set_=("total_train_samples=50",)).config
    assert (config.num_epochs, config.total_train_samples) == (None, 50)
    assert load("a.yaml").config.num_epochs == 3
    write("b.yaml", "num_epochs: 3\ntotal_train_samples: 50")
    assert [problem["code"] for problem in problems("b.yaml")] == ["config.contradiction"]


def test_flat_key_moves_into_its_section_and_wins_over_an_earlier_layer(write, load, problems):
    write("a.yaml", "source: {camera: left, every: 3}")
    resolved = load("a.yaml", set_=("camera=wrist",))
    assert (resolved.config.source.camera, resolved.config.source.every) == ("wrist", 3)
    assert resolved.origins["source.camera"] == "command line, --set camera"
    write("b.yaml", "camera: right\nsource: {camera: left}")
    assert [problem["key"] for problem in problems("b.yaml")] == ["camera"]


def test_specialized_class_validates():
    class Special(ConfigModel):
        speed: int = 1

        @classmethod
        def specialize(cls, tree):
            return Fast if tree.get("speed") == 9 else cls

    class Fast(Special):
        boost: bool = False

    config = load_config(
        Special, overrides=[Override("speed", 9, "test"), Override("boost", "yes", "test")]
    ).config
    assert isinstance(config, Fast)
    assert config.boost is True


def test_unknown_registry_name_becomes_a_problem_with_origin(write):
    class Root(ConfigModel):
        format: str = ""

        @classmethod
        def specialize(cls, tree):
            raise UsageError("unknown format 'x'", details={"key": "format"})

    write("a.yaml", "\nformat: x")
    with pytest.raises(ConfigError) as caught:
        load_config(Root, files=["a.yaml"])
    assert caught.value.details["problems"][0]["origin"] == "a.yaml:2"


def test_file_that_is_no_mapping_is_an_error(write, problems):
    write("a.yaml", "- 1")
    assert problems("a.yaml")[0]["origin"] == "a.yaml:1"


def test_empty_file_changes_nothing(write, load, root_schema):
    write("a.yaml", "# nothing\n")
    assert load("a.yaml").config == root_schema()
