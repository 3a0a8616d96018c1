"""Overrides of the command line: scalars, lists, includes."""

import pytest

from vlatool.config.resolve import Override, load_config, parse_override
from vlatool.errors import UsageError
from vlatool.models.trained import TrainedConfig


@pytest.mark.parametrize(
    ("typed", "key", "expected"),
    [
        (("cameras=a,b",), "cameras", ["a", "b"]),
        (("cameras=[a, b]",), "cameras", ["a", "b"]),
        (("cameras=a", "cameras=b"), "cameras", ["a", "b"]),
        (('cameras=["a", "b"]',), "cameras", ["a", "b"]),
        (("cameras=a",), "cameras", ["a"]),
        (("cameras=",), "cameras", []),
        (("name=a", "name=b"), "name", "b"),
        (("name=include_test",), "name", "include_test"),
        (("name=a=b",), "name", "a=b"),
        *(
            ((f"name={text}",), "name", text)
            for text in ("1e-4", "012", "true", "a: b", "x # y", "s3://b/k", "-5", " a")
        ),
    ],
)
def test_lists_are_typed_three_ways_and_text_is_kept_as_typed(write, load, typed, key, expected):
    write("a.yaml", "cameras: [x]")
    assert getattr(load("a.yaml", set_=typed).config, key) == expected


def test_pair_of_numbers_and_dashes_in_keys(load):
    hparams = load(set_=("hparams.betas=0.5,1", "--hparams.grad-clip-norm=2")).config.hparams
    assert (hparams.betas, hparams.grad_clip_norm) == ((0.5, 1.0), 2.0)


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


def test_typed_values_stay(root_schema):
    typed = [Override("hparams.betas", (0.1, 0.2), "x"), Override("data", None, "x")]
    config = load_config(root_schema, overrides=typed).config
    assert (config.hparams.betas, config.data) == ((0.1, 0.2), None)


@pytest.mark.parametrize("text", ["name", "=x", "a..b=1", "a" + ".a" * 10_000 + "=1"])
def test_text_without_key_or_value_is_an_error(text):
    with pytest.raises(UsageError) as caught:
        parse_override(text)
    assert caught.value.code == "usage.bad_value"


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


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ((("lora", "8"), ("lora.alpha", "3")), (8, 3.0)),
        ((("lora.alpha", "3"), ("lora", "8")), (8, 3.0)),
        ((("lora.rank", "4"), ("lora", "8")), (8, None)),
        ((("lora", "8"), ("lora.rank", "4")), (4, None)),
    ],
)
def test_a_section_typed_as_a_text_and_its_keys_merge_in_order(typed, expected):
    overrides = [Override(key, value, "command line") for key, value in typed]
    lora = load_config(TrainedConfig, overrides=overrides).config.lora
    assert (lora.rank, lora.alpha) == expected
