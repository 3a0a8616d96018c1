"""Errors of configurations: all problems with their origins and similar names."""

import pytest

from vlatool.config.resolve import Override, load_config
from vlatool.errors import ConfigError
from vlatool.evaluation.config import OpenLoopConfig


def test_unknown_key_suggests_the_key_of_another_section(write, load):
    write("train.yaml", "\nmodel:\n  lr: 1\n")
    with pytest.raises(ConfigError) as caught:
        load("train.yaml")
    assert caught.value.message == (
        'train.yaml:3: unknown key "model.lr" (did you mean "hparams.lr"?)'
    )
    assert caught.value.code == "config.unknown_key"
    assert caught.value.exit_code == 2


def test_all_problems_are_reported_together(write, problems):
    write("a.yaml", "modle: {}\nhparams:\n  lr: -1\n  optimizer: adam\nnum_epochs: x\n")
    origins = {problem["key"]: problem["origin"] for problem in problems("a.yaml", set_=("nme=1",))}
    assert origins == {
        "modle": "a.yaml:1",
        "hparams.lr": "a.yaml:3",
        "hparams.optimizer": "a.yaml:4",
        "num_epochs": "a.yaml:5",
        "nme": "command line, --set nme",
    }


@pytest.mark.parametrize(
    ("typed", "key", "suggestion", "code"),
    [
        ("modle=x", "modle", "model", "config.unknown_key"),
        ("hparams.lrr=1", "hparams.lrr", "hparams.lr", "config.unknown_key"),
        ("fields.a.metod=std", "fields.a.metod", "fields.a.method", "config.unknown_key"),
        ("hparams.optimizer=adam", "hparams.optimizer", "adamw", "config.invalid_value"),
        ("fields.a.method=sdt", "fields.a.method", "std", "config.invalid_value"),
        (
            "model.backbone.type=clip",
            "model.backbone.type",
            "clip_backbone",
            "config.invalid_value",
        ),
    ],
)
def test_nearest_name(problems, typed, key, suggestion, code):
    [problem] = problems(set_=(typed,))
    assert (problem["key"], problem["code"]) == (key, code)
    assert problem["suggestions"][0] == suggestion


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("every: often", "every"),
        ("source: {every: often}", "source.every"),
        ("source: {camera: a}\nevery: often", "every"),
    ],
)
def test_key_of_a_flat_section_is_reported_as_written(write, problems, text, key):
    write("a.yaml", text)
    [problem] = problems("a.yaml")
    assert problem["key"] == key
    assert problem["message"].startswith(f'"{key}" is "often"')


def test_last_notation_of_a_flat_key_is_reported_and_a_misspelled_one_suggests_it(write, problems):
    write("a.yaml", "every: often")
    keys = [problem["key"] for problem in problems("a.yaml", set_=("source.every=x",))]
    assert keys == ["source.every"]
    [problem] = problems(set_=("evry=2",))
    assert problem["suggestions"] == ("every",)


def test_names_of_union_members_are_not_part_of_keys(problems):
    typed = ("model.backbone.type=vit_backbone", "model.backbone.width=0")
    assert [problem["key"] for problem in problems(set_=typed)] == ["model.backbone.width"]


def test_items_of_lists_have_keys_with_their_index(write, problems):
    write(
        "a.yaml",
        "model:\n  extra_backbones:\n  - {type: vit_backbone}\n  - type: vit_backbone\n    wdth: 1",
    )
    [problem] = problems("a.yaml")
    assert (problem["key"], problem["origin"]) == ("model.extra_backbones.1.wdth", "a.yaml:5")
    assert problem["suggestions"][0] == "model.extra_backbones.1.width"


def test_unknown_type_or_a_scalar_for_a_section_is_a_problem_of_that_key(problems):
    for typed in ("model.backbone.type=zzz", "model.backbone=vit", "model.backbone=3"):
        [problem] = problems(set_=(typed,))
        assert problem["key"] == typed.partition("=")[0]
        assert problem["code"] == "config.invalid_value"
        assert "vit_backbone" in problem["message"]
        assert "clip_backbone" in problem["message"]
    assert [problem["key"] for problem in problems(set_=("hparams=null",))] == ["hparams"]


def test_missing_type_without_a_default_is_reported(write, problems):
    write("a.yaml", "model:\n  text:\n    width: 3\n")
    [problem] = problems("a.yaml")
    assert (problem["key"], problem["code"]) == ("model.text.type", "config.missing_key")
    assert "clip_backbone" in problem["message"]


def test_key_of_another_union_member_names_the_type(problems):
    [problem] = problems(set_=("model.backbone.disable_text=true",))
    assert (problem["key"], problem["suggestions"]) == ("model.backbone.disable_text", ())
    assert "clip_backbone" in problem["message"]


@pytest.mark.parametrize("key", ["infrared", "source.infrared"])
def test_key_of_another_entry_of_a_registry_names_it(problems, key):
    [problem] = problems(set_=(f"{key}=true",))
    assert (problem["key"], problem["suggestions"]) == (key, ())
    assert "reader other" in problem["message"]


@pytest.mark.parametrize("section", ["", "hparams:\n"])
def test_twenty_thousand_unknown_keys_are_reported_quickly(write, load, section):
    indent = "  " if section else ""
    write("a.yaml", section + "".join(f"{indent}key_{n}: 1\n" for n in range(20_000)))
    with pytest.raises(ConfigError) as caught:
        load("a.yaml")
    assert "20,000 problems" in caught.value.message
    assert len(caught.value.message.splitlines()) < 30
    assert len(caught.value.details["problems"]) == 100, "similar names of more take too long"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("model.backbone.width=0", "at least 1"),
        ("hparams.lr=.inf", "finite number"),
        ("hparams.betas=1", "list of 2 values, not 1"),
        ("hparams.grad_clip_norm=x", "must be a number"),
        ("hparams.steps=" + "9" * 5_000, "an integer"),
        ("hparams.steps=" + "9" * 500, "below 2^63"),
        ("hparams.steps=0x" + "9" * 5_000, "an integer"),
        ("hparams.lr=" + "9" * 5_000, "must be a number"),
    ],
)
def test_invalid_value_is_reported_with_valid_ones(problems, typed, expected):
    [problem] = problems(set_=(typed,))
    assert expected in problem["message"]
    assert len(problem["message"]) < 200


def test_integer_of_thousands_of_digits_is_valid_text(load):
    assert load(set_=("name=" + "9" * 5_000,)).config.name == "9" * 5_000


def test_a_rule_about_several_keys_is_no_misspelled_key() -> None:
    typed = [Override("samples", "4", "--samples"), Override("checkpoint", "run", "CHECKPOINT")]
    with pytest.raises(ConfigError) as caught:
        load_config(OpenLoopConfig, overrides=typed)
    assert "raise it, for example to temperature 0.5" in str(caught.value)
    assert "did you mean" not in str(caught.value)
