"""Parsing of command lines: keys, switches, lists, order, option aliases, errors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import Field

from vlatool.cli.app import run
from vlatool.cli.commands import COMMANDS, Command
from vlatool.cli.config_command import Form
from vlatool.cli.forms import typer_command
from vlatool.cli.options import OutputOptions
from vlatool.cli.session import Invocation
from vlatool.config.base import ConfigModel, Converted
from vlatool.errors import VlatoolError


class Reader(ConfigModel):
    observation_keys: list[str] = Field(default_factory=list, description="Keys to read.")


class Flat(ConfigModel):
    flat_sections = ("source",)
    NAMES = {"out_dir": "output", "source_episodes": "sources"}  # noqa: RUF012
    help_groups = {"Speed": ("engine", "threshold")}  # noqa: RUF012

    layout: str = ""
    sources: list[str] = Field(default_factory=list)
    output: str = Field("out", description="Output folder.")
    samples_per_shard: int = Field(100, ge=1, description="Samples in one shard.")
    threshold: float = 0.1
    overwrite: bool = Field(default=False, description="Replace an earlier output.")
    shuffle: bool = True
    size: tuple[int, int] | None = None
    engine: Literal["local", "ray"] = "local"
    source: Reader = Field(default_factory=Reader, description="Keys of the reader.")


class Hparams(ConfigModel):
    lr: float = 1e-4
    betas: list[float] = Field(default_factory=lambda: [0.9, 0.95])


def _run_folder(text: str) -> dict[str, Any]:
    folder, _, name = text.rpartition("/")
    return {"save_path": folder, "name": name}


class Tree(ConfigModel):
    NAMES = {"output": Converted(_run_folder)}  # noqa: RUF012

    name: str | None = None
    save_path: str = "runs"
    hparams: Hparams = Field(default_factory=Hparams)


configs: list[Any] = []


def keep(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    configs.append(run.config(**{key: values[key] for key in row.arguments}))


def flat_form(row: Command) -> Form:
    return Form(keep)


def tree_form(row: Command) -> Form:
    return Form(keep, is_flat=False, rows={"output": ("-o, --output RUN", "Folder of the run.")})


FLAT = Command("", f"{__name__}:(Flat)", {"layout": "[LAYOUT]"}, form=f"{__name__}:flat_form")
TREE = Command("", f"{__name__}:(Tree)", form=f"{__name__}:tree_form")


def read(row: Command, argv: list[str]) -> Any:
    configs.clear()
    command = typer_command("vlatool", row)
    with command.make_context("vlatool", list(argv), obj=OutputOptions()) as ctx:
        command.invoke(ctx)
    return configs[0] if configs else None


def flat(*argv: str) -> Any:
    return read(FLAT, list(argv))


def tree(*argv: str) -> Any:
    return read(TREE, list(argv))


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--samples-per-shard", "7"], "samples_per_shard", 7),
        (["--samples_per_shard=7"], "samples_per_shard", 7),
        (["--samples-per-shard", "1_000"], "samples_per_shard", 1000),
        (["--threshold", "-1e-4"], "threshold", -1e-4),
        (["--threshold=-.5"], "threshold", -0.5),
        (["--overwrite"], "overwrite", True),
        (["--overwrite", "true"], "overwrite", True),
        (["--overwrite", "no"], "overwrite", False),
        (["--overwrite=off"], "overwrite", False),
        (["--no-shuffle"], "shuffle", False),
        (["--no_shuffle"], "shuffle", False),
        (["--size", "96,64"], "size", (96, 64)),
        (["--size", "[96, 64]"], "size", (96, 64)),
        (["--size", "null"], "size", None),
        (["--engine", "ray"], "engine", "ray"),
        (["--output", "012"], "output", "012"),
        (["-o", "there"], "output", "there"),
        (["-othere"], "output", "there"),
        (["--out_dir", "there"], "output", "there"),
        (["--set", "output=there"], "output", "there"),
        (["--set", "output=a=b"], "output", "a=b"),
        (["--sources", "a,b"], "sources", ["a", "b"]),
        (["--sources", "a", "--sources", "b"], "sources", ["a", "b"]),
        (["--source_episodes", "['a/', \n 'b/',\n ]"], "sources", ["a/", "b/"]),
        (["spartan"], "layout", "spartan"),
        (["--overwrite", "spartan"], "layout", "spartan"),
    ],
)
def test_flat_key_is_read(argv: list[str], key: str, value: Any) -> None:
    assert getattr(flat(*argv), key) == value


@pytest.mark.parametrize("option", ["--observation-keys", "--source.observation_keys"])
def test_key_of_a_flat_section_may_be_typed_short_or_dotted(option: str) -> None:
    assert flat(option, "a,b").source.observation_keys == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "lr"),
    [
        (["--hparams.lr", "3e-4"], 3e-4),
        (["--hparams.lr=3e-4"], 3e-4),
        (["--set", "hparams.lr=3e-4"], 3e-4),
        (["--hparams.lr", "1", "--set", "hparams.lr=2"], 2.0),
        (["--set", "hparams.lr=2", "--hparams.lr", "1"], 1.0),
        (["hparams.lr=3"], 3.0),
        (["hparams.lr=3", "--hparams.lr", "1", "hparams.lr=2"], 2.0),
    ],
)
def test_tree_key_is_read_in_the_order_typed(argv: list[str], lr: float) -> None:
    assert tree(*argv).hparams.lr == lr


def test_repeated_dotted_flag_makes_a_list() -> None:
    assert tree("--hparams.betas", "0.5", "--hparams.betas", "0.6").hparams.betas == [0.5, 0.6]


def test_name_of_several_keys_sets_them() -> None:
    config = tree("-o", "somewhere/first")
    assert (config.save_path, config.name) == ("somewhere", "first")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--hparams.lr"], "usage.missing_key"),
        (["--hparams.lr", "--output", "a/b"], "usage.missing_key"),
        (["--config"], "usage.missing_key"),
        (["--set", "hparams.lr"], "usage.bad_value"),
        (["--output", "a/b", "--set", "name=c"], "config.contradiction"),
        (["--lr", "1"], "usage.unknown_option"),
        (["--outptu", "a/b"], "usage.unknown_option"),
        (["-x"], "usage.unknown_option"),
        (["--hparams.lrr", "1"], "config.unknown_key"),
    ],
)
def test_wrong_option_of_a_tree_is_an_error(argv: list[str], code: str) -> None:
    with pytest.raises(VlatoolError) as caught:
        tree(*argv)
    assert caught.value.exit_code == 2
    assert code in (caught.value.code, *_problem_codes(caught.value))


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["--samples-per-shrad", "1"], "--samples-per-shard"),
        (["--sampels_per_shard", "1"], "--samples-per-shard"),
        (["--presett", "x"], "--preset"),
        (["--jsn"], "--json"),
    ],
)
def test_unknown_option_names_the_nearest(argv: list[str], nearest: str) -> None:
    with pytest.raises(VlatoolError) as caught:
        flat(*argv)
    assert caught.value.code == "usage.unknown_option"
    assert nearest in caught.value.hint


def test_key_of_another_format_or_of_a_section_is_answered_with_its_name() -> None:
    with pytest.raises(VlatoolError) as caught:
        read(COMMANDS["preprocess"], ["lerobot", "raw", "--data-discard-keys", "a"])
    assert "format spartan" in caught.value.message
    with pytest.raises(VlatoolError) as caught:
        tree("--lr", "1")
    assert caught.value.code == "usage.unknown_option"
    assert "--hparams.lr" in caught.value.hint


@pytest.mark.parametrize("option", ["--save-path", "--save_path"])
def test_key_outside_the_sections_of_a_tree_is_an_option(option: str) -> None:
    assert tree(option, "a").save_path == "a"


@pytest.mark.parametrize("option", ["observation_keys", "source.observation_keys"])
def test_wrong_value_is_reported_with_the_name_that_was_typed(option: str) -> None:
    with pytest.raises(VlatoolError) as caught:
        flat(f"--{option}", "{a: 1}")
    assert [problem["key"] for problem in caught.value.details["problems"]] == [option]


def test_argument_and_option_for_one_key_are_an_error() -> None:
    with pytest.raises(VlatoolError) as caught:
        flat("spartan", "--layout", "lerobot")
    assert caught.value.code == "usage.conflict"


def test_help_lists_keys_with_type_default_and_description_by_the_headings_of_their_class(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit):
        flat("--help-all")
    text = capsys.readouterr().out
    shown = " ".join(text.split())
    assert "--samples-per-shard N Samples in one shard. [100]" in shown
    assert "--[no-]overwrite Replace an earlier output. [false]" in shown
    _, *sections = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    groups = {
        title: re.findall(r"--[a-z-]+", text)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }
    assert groups["Speed"] == ["--threshold", "--engine"]
    assert groups["Keys of the reader"] == ["--observation-keys"]
    assert "--samples-per-shard" in groups["Keys"]


def test_keys_option_lists_keys_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert tree("--keys") is None
    assert "hparams.lr: float = 0.0001" in capsys.readouterr().out


def _problem_codes(error: VlatoolError) -> list[str]:
    return [problem["code"] for problem in error.details.get("problems", [])]


def test_bare_config_key_names_a_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("hparams: {lr: 5}\n")
    assert tree(f"config={file}", "hparams.betas=0.5").hparams.lr == 5


def test_bare_word_of_a_flat_command_is_its_argument() -> None:
    assert flat("a=b").layout == "a=b"


def test_compat_ignores_unknown_keys_of_files_and_is_no_option_of_a_flat_command(
    tmp_path: Path,
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("hparams: {lr: 5, momentum: 1}\n")
    assert tree("--compat", "--config", str(file)).hparams.lr == 5
    assert run(["doctor", "--compat"]) == 2
