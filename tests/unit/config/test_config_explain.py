"""Written configurations: they can be loaded again and have the origins of values."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlatool.config.resolve import Override, load_config
from vlatool.config.schema import choices, dotted_keys, unset_required
from vlatool.config.yaml_text import to_yaml

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
_OPTION = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=_TEXT | st.none(),
    lr=st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    cameras=st.lists(_TEXT, max_size=4),
    options=st.dictionaries(_TEXT, _OPTION, max_size=3),
    explain=st.booleans(),
)
def test_written_configuration_loads_equal(write, root_schema, name, lr, cameras, options, explain):
    values = {
        "name": name,
        "hparams": {"lr": lr},
        "cameras": cameras,
        "options": options,
        "model": {"extra_backbones": [{"type": "clip_backbone"}, {"type": "vit_backbone"}]},
        "fields": {"a": {"method": "range"}},
    }
    overrides = [Override("name", name, "x")] if name is None else []
    first = load_config(
        root_schema,
        overrides=[*overrides, *(Override(k, v, "x") for k, v in values.items() if k != "name")],
    )
    write("again.yaml", to_yaml(first, explain=explain))
    assert load_config(root_schema, files=["again.yaml"]).config == first.config


def test_both_yaml_versions_read_small_floats(load):
    text = to_yaml(load(set_=("hparams.lr=1e-8",)))
    assert "lr: 1.0e-08\n" in text
    assert yaml.safe_load(text)["hparams"]["lr"] == 1e-8


def test_absent_derived_value_shows_its_rule(load):
    assert "  action_dim: null  # derived: sum of action fields\n" in to_yaml(load())


def test_explain_names_the_origin_of_each_value(write, load):
    write("a.yaml", "hparams:\n  steps: 3\ncameras: [x]\n")
    lines = to_yaml(load("a.yaml", set_=("name=n",)), explain=True).splitlines()
    comments = {
        line.split(":")[0].strip(): line.partition("  # ")[2] for line in lines if "  # " in line
    }
    assert comments["steps"] == "a.yaml:2"
    assert comments["cameras"] == "a.yaml:3"
    assert comments["name"] == "command line, --set name"
    assert comments["lr"] == "default"


@pytest.mark.parametrize(
    ("key", "type_text", "default"),
    [
        ("hparams.lr", "float", 1e-4),
        ("hparams.optimizer", "adamw | sgd", "adamw"),
        ("hparams.grad_clip_norm", "float | null", None),
        ("hparams.betas", "tuple[float, float]", [0.9, 0.95]),
        ("model.backbone.type", "vit_backbone | clip_backbone", "vit_backbone"),
        ("model.backbone.width", "int", 48),
        ("fields.*.method", "std | range", "std"),
        ("cameras", "list[str]", []),
    ],
)
def test_dotted_keys_have_type_and_default(root_schema, key, type_text, default):
    info = {info.key: info for info in dotted_keys(root_schema)}[key]
    assert (info.type_text, info.default) == (type_text, default)


def test_needed_keys_without_value_are_listed_and_sections_are_none(root_schema):
    assert "hparams" not in {info.key for info in dotted_keys(root_schema)}
    assert choices(root_schema, "model.backbone.type") == ["vit_backbone", "clip_backbone"]
    assert unset_required(root_schema()) == ["data", "num_epochs or total_train_samples"]
    assert unset_required(root_schema(data="x", num_epochs=1)) == []
