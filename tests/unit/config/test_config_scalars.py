"""Values of scalars: YAML 1.2, then the type of the field (reference/training 1.3)."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vlatool.config.coerce import core_value, write_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("012", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("nan", "nan"),
    ],
)
def test_core_schema(text, value):
    result = core_value(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("hparams.compile", "true", True),
        ("hparams.compile", "True", True),
        ("hparams.compile", "yes", True),
        ("hparams.compile", "on", True),
        ("hparams.compile", "off", False),
        ("hparams.steps", "1_000", 1000),
        ("hparams.steps", "012", 12),
        ("hparams.lr", "5e-4", 5e-4),
        ("hparams.lr", "1_0.5", 10.5),
        ("hparams.lr", "3", 3.0),
        ("hparams.grad_clip_norm", "null", None),
        ("name", "500", "500"),
        ("name", "yes", "yes"),
        ("name", "null", None),
    ],
)
def test_field_accepts(write, load, key, text, value):
    write("a.yaml", _nested(key, text))
    for resolved in (load("a.yaml"), load(set_=(f"{key}={text}",))):
        result = resolved.config
        for part in key.split("."):
            result = getattr(result, part)
        assert result == value
        assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("hparams.compile", "0"),
        ("hparams.compile", "1"),
        ("hparams.compile", '"False"'),
        ("hparams.steps", "1e3"),
        ("hparams.steps", "20.0"),
        ("hparams.steps", "true"),
        ("hparams.steps", '"5"'),
        ("hparams.lr", '"5e-4"'),
        ("hparams.lr", "null"),
        ("hparams.lr", ".nan"),
        ("hparams.betas", "[1, 2, 3]"),
        ("hparams.optimizer", "adam"),
        ("hparams", "3"),
    ],
)
def test_field_rejects(write, problems, key, text):
    write("a.yaml", _nested(key, text))
    assert [problem["key"] for problem in problems("a.yaml")] == [key]


@given(st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=12))
def test_written_scalars_mean_the_same_to_yaml_1_1(value):
    text = write_scalar(value)
    result = yaml.safe_load(text)
    assert result == value or (math.isnan(value) and math.isnan(result))
    assert type(result) is type(value)


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_written_scalars_mean_the_same_to_yaml_1_2(value):
    assert core_value(write_scalar(value)) == value


def _nested(key: str, text: str) -> str:
    section, _, leaf = key.rpartition(".")
    return f"{section}: {{{leaf}: {text}}}" if section else f"{leaf}: {text}"
