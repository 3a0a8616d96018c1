"""`!include`, `<<`, `!replace`, and invalid YAML."""

import pytest

from vlatool.config.includes import MAX_FILES
from vlatool.errors import ConfigError


def test_include_of_a_mapping_or_list_is_relative_to_the_including_file(write, load):
    write("jobs/train.yaml", "model: !include parts/model.yaml\ncameras: !include cameras.yaml")
    write("jobs/parts/model.yaml", "backbone: !include deeper/vit.yaml")
    write("jobs/parts/deeper/vit.yaml", "{type: vit_backbone, width: 5}")
    write("jobs/cameras.yaml", "[left, right]")
    config = load("jobs/train.yaml").config
    assert (config.model.backbone.width, config.cameras) == (5, ["left", "right"])


def test_explicit_keys_win_over_merged_ones_at_every_depth(write, load):
    write("a.yaml", "model:\n  backbone: {width: 9}\n<<: !include base.yaml\n")
    write("base.yaml", "model: {backbone: {type: vit_backbone, width: 5, depth: 6}}\nname: x")
    config = load("a.yaml").config
    assert (config.model.backbone.width, config.model.backbone.depth) == (9, 6)
    assert config.name == "x"


def test_merge_key_twice_the_later_wins(write, load):
    write("a.yaml", "<<: !include one.yaml\n<<: !include two.yaml\n")
    write("one.yaml", "{name: one, num_epochs: 1}")
    write("two.yaml", "{name: two}")
    config = load("a.yaml").config
    assert (config.name, config.num_epochs) == ("two", 1)


@pytest.mark.parametrize(
    ("merged", "expected"),
    [("{a: 1, b: 2}", {"a": 1, "b": 3}), ("[{a: 1}, {a: 2, b: 2}]", {"a": 1, "b": 3})],
)
def test_merge_key_of_a_nested_mapping_list_or_anchor(write, load, merged, expected):
    write("a.yaml", f"options:\n  x: &x {{<<: {merged}, b: 3}}\n  y: {{<<: *x, c: 4}}\n")
    options = load("a.yaml").config.options
    assert options == {"x": expected, "y": {**expected, "c": 4}}


def test_replace_drops_what_lower_layers_had_and_reaches_through_an_include(write, load):
    write("a.yaml", "options: {a: 1, b: 2}")
    write("b.yaml", "<<: !include c.yaml\noptions: {d: 4}")
    write("c.yaml", "options: !replace {c: 3}")
    assert load("a.yaml", "c.yaml").config.options == {"c": 3}
    assert load("a.yaml", "b.yaml").config.options == {"c": 3, "d": 4}


@pytest.mark.parametrize(
    ("text", "origin", "code"),
    [
        ("name: x\nname: y", "a.yaml:2", "config.syntax"),
        ("name: x\nmodel: !include none.yaml", "a.yaml:2", "config.missing_file"),
        ("\n<<: !include a.yaml", "a.yaml:2", "config.syntax"),
        ("model: !include b.yaml", "b.yaml:2", "config.syntax"),
        ("name: x\nhparams: {lr: 1", "a.yaml:2", "config.syntax"),
        ("name: !!python/name:os.system x", "a.yaml:1", "config.syntax"),
        ("hparams: !other {lr: 1}", "a.yaml:1", "config.syntax"),
        ("cameras: !replace [a]", "a.yaml:1", "config.syntax"),
        ("<<: text", "a.yaml:1", "config.syntax"),
        ("options: &x {a: *x}", "a.yaml:1", "config.syntax"),
        ("? [a, b]\n: 1", "a.yaml:1", "config.syntax"),
        ("a: 1\n---\nb: 2", "a.yaml:2", "config.syntax"),
        ("name: x\noptions: *none", "a.yaml:2", "config.syntax"),
        ("name: \udcff", "", "config.missing_file"),
    ],
)
def test_unreadable_yaml_names_file_and_line(write, problems, text, origin, code):
    write("a.yaml", "").write_bytes(text.encode(errors="surrogateescape"))
    write("b.yaml", "\nbackbone: !include a.yaml")
    problem = problems("a.yaml")[0]
    assert (problem["origin"], problem["code"]) == (origin, code)


@pytest.mark.parametrize(
    "text", ["cameras: " + "[" * 100_000, "options: " + "{a: " * 100_000 + "1" + "}" * 100_000]
)
def test_unlimited_nesting_is_an_error_with_its_line(write, problems, text):
    write("a.yaml", text)
    assert problems("a.yaml")[0]["origin"] == "a.yaml:1"


def test_nesting_by_includes_counts_too(write, problems):
    for number in range(60):
        write(f"{number}.yaml", f"[[!include {number + 1}.yaml]]")
    write("a.yaml", "options: !include 0.yaml")
    assert problems("a.yaml")[0]["code"] == "config.syntax"


def test_exponential_aliases_are_an_error(write, problems):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    write("a.yaml", "\n".join(lines))
    assert problems("a.yaml")[0]["code"] == "config.syntax"


@pytest.mark.parametrize("start", ["-c", "--set", "include"])
def test_exponential_includes_share_one_budget(write, problems, start):
    for number in range(26):
        name = f"{number + 1}.yaml"
        write(f"{number}.yaml", f"a: !include {name}\nb: !include {name}")
    write("26.yaml", "{}")
    write("all.yaml", "".join(f"key_{n}: include 20.yaml\n" for n in range(100)))
    result = {
        "-c": lambda: problems("0.yaml"),
        "--set": lambda: problems(set_=("options=include 0.yaml",)),
        "include": lambda: problems("all.yaml"),
    }[start]()
    assert result[0]["code"] == "config.syntax"


def test_as_many_files_as_are_allowed_are_read(write, load):
    write("one.yaml", "1")
    items = "".join(f"  n{number}: !include one.yaml\n" for number in range(MAX_FILES - 1))
    write("a.yaml", f"options:\n{items}")
    assert len(load("a.yaml").config.options) == MAX_FILES - 1


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("jobs/trian.yaml", "-c jobs/train.yaml"),
        ("diffusion-policy.yaml", "--preset diffusion-policy-tiny"),
        ("nowhere/train.yaml", "nowhere"),
        ("x.yaml", "vlatool presets"),
    ],
)
def test_missing_file_suggests_similar_files_and_presets(write, load, typed, expected):
    write("jobs/train.yaml", "{}")
    with pytest.raises(ConfigError) as caught:
        load(typed)
    assert expected in caught.value.hint
