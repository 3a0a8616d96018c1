"""Help: one screen for every command, all options on request."""

import json
import re

import pytest

from tests.surface.invoke import run_vlatool
from vlatool.cli.commands import COMMANDS, GROUPS
from vlatool.cli.help import SHARED_HELP
from vlatool.plugins import FORMATS, SINKS

LINES, COLUMNS = 45, 80


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def help_of(*words: str) -> str:
    code, text = run_vlatool(*words)
    assert code == 0
    return text


def rows_of(text: str) -> list[str]:
    """Long options at the beginning of a row."""
    return re.findall(r"^  (?:-\w, )?--(?:\[no-\])?([\w.-]+)", text, re.MULTILINE)


def options_in(text: str) -> set[str]:
    return set(rows_of(text))


@pytest.mark.parametrize(
    "words",
    [
        "",
        *GROUPS,
        *COMMANDS,
        "preprocess missing",
        *(f"preprocess {name}" for name in FORMATS.names()),
    ],
)
def test_help_fits_on_one_screen(words: str) -> None:
    lines = help_of(*words.split(), "--help").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("words", COMMANDS)
def test_what_a_description_says_of_no_value_is_shown_as_the_default(words: str) -> None:
    text = help_of(*words.split(), "--help-all")
    for row in re.sub(r"\n {8,}", " ", text).splitlines():
        if re.search(r"; (null|empty)\b", row):
            assert "default: " in row or row.rstrip().endswith("]")


@pytest.mark.parametrize("words", COMMANDS)
def test_help_lists_named_options_in_their_order_and_help_all_lists_all(words: str) -> None:
    named = [name.rstrip("_").replace("_", "-") for name in COMMANDS[words].options.split()]
    listed = rows_of(help_of(*words.split(), "--help"))
    complete = options_in(help_of(*words.split(), "--help-all"))
    assert not named or listed == [*named, "help-all"]
    assert {*listed} - {"help-all"} <= complete
    assert {"json", "log-file"} <= complete - {*listed}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("preprocess", {"output", "preset", "sink", "episodes", "workers"}),
        ("train", {"preset", "config", "total-train-steps", "hparams.lr", "data.num-workers"}),
        ("train", {"hparams.global-batch-size", "data.camera-names", "data", "output", "nproc"}),
    ],
)
def test_what_is_needed_is_on_the_first_screen(words: str, options: set[str]) -> None:
    assert options <= options_in(help_of(words, "--help"))


def test_options_of_every_command_are_listed_once() -> None:
    text = help_of()
    assert all(text.count(f"  {option} ") == 1 for option, _ in SHARED_HELP)


@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_help_of_preprocess_names_all_formats_and_sinks(option: str) -> None:
    text = " ".join(help_of("preprocess", option).split())
    assert f"One of {', '.join(FORMATS.names())}." in text
    assert f"One of {', '.join(SINKS.names())}." in text


def test_list_of_plugins_says_what_each_entry_is() -> None:
    rows = json.loads(help_of("plugins", "--json"))["plugins"]
    own = [row for row in rows if row["origin"] == "vlatool"]
    assert all(row["about"] for row in own)
    assert any("v3.0" in row["about"] for row in own if row["name"] == "lerobot")


def test_all_options_of_train_are_those_of_its_preset() -> None:
    assert "model.num-latent-tokens" in options_in(help_of("train", "-p", "titok-64", "--help-all"))
    assert "model.num-latent-tokens" not in options_in(help_of("train", "--help-all"))


@pytest.mark.parametrize("option", ["--help", "--help-all", "--keys"])
def test_tokenizers_have_no_keys_of_rollouts(option: str) -> None:
    assert "eval.env" in help_of("train", "--keys")
    assert not re.search(r"eval[._-](env|every)", help_of("tokenizer", "train", option))
