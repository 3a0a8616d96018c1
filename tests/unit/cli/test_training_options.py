"""Command line of a training configuration: option aliases, and keys outside the sections."""

import json

import pytest

from vlatool.cli.app import run as run_command
from vlatool.config.resolve import Override, load_config
from vlatool.errors import UsageError
from vlatool.models.published import run_folder
from vlatool.training.config import TrainConfig


def test_data_folders_become_the_key_of_folders_and_a_run_its_parent_and_name() -> None:
    """The folders are not opened: the data kind reads them in `load_info`."""
    folders = ["no/such/folder", "s3://bucket/data/"]
    typed = [Override("data", folder, "--data") for folder in folders]
    config = load_config(TrainConfig, presets=["policy-tiny"], overrides=typed).config
    assert getattr(config.data, "dataset_manifest") == folders  # noqa: B009
    for text, *run in (("runs/first", "runs", "first"), ("a", ".", "a"), ("/a/b/c/", "/a/b", "c")):
        assert [*run_folder(text).values()] == run
    with pytest.raises(UsageError):
        run_folder("/")


@pytest.mark.parametrize("command", ["train", "finetune", "resolve-config"])
def test_key_outside_the_sections_is_typed_as_published(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--preset", "diffusion-policy-tiny", "--log_every_n_steps", "7"]
    assert run_command([*words, "--max-checkpoint-limit", "3", "--resolve_configs", "True"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"log_every_n_steps: 7", "max_checkpoint_limit: 3"} <= set(lines)


def test_resolve_config_takes_a_command_line_of_finetune(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--from", "runs/first", "--preset", "diffusion-policy-tiny", "--nproc", "2"]
    assert run_command(["resolve-config", *words, "--data", "data", "--num-epochs", "3"]) == 0
    assert "init_from: runs/first" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("typed", ["[a, b]", "2024"])
def test_value_of_a_published_option_is_parsed_like_that_of_a_key(
    typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["resolve-config", "--preset", "diffusion-policy-tiny", "--wandb_tags", typed]
    assert run_command(words) in (0, 2)
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--eval.env", "toys/Line-v0"], "config.contradiction"),
        (["--eval-every-n-checkpoints", "2"], "config.contradiction"),
        (["--preset", "rollout-world"], "usage.conflict"),
    ],
    ids=["section", "interval", "preset"],
)
def test_tokenizer_is_not_rolled_out(
    words: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tokenizer", "train", "--preset", "vqgan-tiny", *words, "--data", "d", "--json"]
    assert run_command(command) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
