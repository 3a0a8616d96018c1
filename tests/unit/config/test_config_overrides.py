"""Overrides of the command line: scalars, lists, includes."""

import pytest

from vlatool.config.coerce import to_value
from vlatool.config.resolve import Override, overrides_tree, parse_override
from vlatool.errors import UsageError


@pytest.mark.parametrize(
    "typed",
    [("cameras=a,b",), ("cameras=[a, b]",), ("cameras=a", "cameras=b"), ('cameras=["a", "b"]',)],
)
def test_lists_are_typed_three_ways(load, typed):
    assert load(set_=typed).config.cameras == ["a", "b"]


def test_one_value_makes_a_list_of_one(load):
    assert load(set_=("cameras=a",)).config.cameras == ["a"]


def test_nothing_makes_an_empty_list(write, load):
    write("a.yaml", "cameras: [x]")
    assert load("a.yaml", set_=("cameras=",)).config.cameras == []


def test_repeated_scalar_takes_the_last(load):
    assert load(set_=("name=a", "name=b")).config.name == "b"


def test_pair_of_numbers(load):
    assert load(set_=("hparams.betas=0.5,1",)).config.hparams.betas == (0.5, 1.0)


def test_flow_mapping_merges_deeply(write, load):
    write("a.yaml", "hparams: {lr: 2, steps: 3}")
    hparams = load("a.yaml", set_=("hparams={steps: 4}",)).config.hparams
    assert (hparams.lr, hparams.steps) == (2.0, 4)


def test_include_loads_a_file_relative_to_the_current_folder(write, load):
    write("sub/vit.yaml", "type: vit_backbone\nwidth: 5")
    resolved = load(set_=("model.backbone=include sub/vit.yaml", "model.backbone.depth=9"))
    assert resolved.config.model.backbone.width == 5
    assert resolved.config.model.backbone.depth == 9
    assert resolved.origins["model.backbone.width"] == "sub/vit.yaml:2"


def test_text_that_only_starts_like_include_is_text(load):
    assert load(set_=("name=include_test",)).config.name == "include_test"


@pytest.mark.parametrize("text", ["1e-4", "012", "true", "a: b", "x # y", "s3://b/k", "-5", " a"])
def test_text_field_keeps_what_was_typed(load, text):
    assert load(set_=(f"name={text}",)).config.name == text


def test_dashes_are_underscores_in_keys(load):
    assert load(set_=("--hparams.grad-clip-norm=2",)).config.hparams.grad_clip_norm == 2.0


def test_value_may_contain_the_equals_sign(load):
    assert load(set_=("name=a=b",)).config.name == "a=b"


def test_typed_values_stay(load):
    tree = overrides_tree([Override("hparams.betas", (0.1, 0.2), "x"), Override("data", None, "x")])
    assert to_value(tree) == {"hparams": {"betas": [0.1, 0.2]}, "data": None}


@pytest.mark.parametrize("text", ["name", "=x", "a..b=1", "a" + ".a" * 10_000 + "=1"])
def test_text_without_key_or_value_is_an_error(text):
    with pytest.raises(UsageError) as caught:
        parse_override(text)
    assert caught.value.code == "usage.override"


@pytest.mark.parametrize(
    ("option", "origin"),
    [("--hparams.lr", "--hparams.lr"), ("", "--set hparams.lr"), ("--lr", "--lr")],
)
def test_origin_is_the_option_as_typed(option, origin):
    assert parse_override("hparams.lr=1", option).origin == f"command line, {origin}"


@pytest.mark.parametrize("text", ["[a", "[" * 100_000, "!include none.yaml"])
def test_a_value_that_cannot_be_read_names_the_option(problems, text):
    origin = problems(set_=("name=x", f"cameras={text}"))[0]["origin"]
    assert origin.startswith("command line, --set cameras")
