"""`vlatool launch sagemaker`: the request, the configuration of the run, and rejected input."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders.s3_runs import upload
from tests.builders.s3_server import S3Server, without_credentials
from tests.builders.training import tiny_arguments
from tests.surface.invoke import run_vlatool
from vlatool.config.resolve import load_config
from vlatool.launching.sagemaker import instance_type, job_error, load_secrets, num_gpus
from vlatool.storage.remote_path import RemotePath
from vlatool.training.config import TrainConfig

RUN = (
    *("--preset", "diffusion-policy-bellpepper", "--data", "s3://lab/data", "--num-epochs", "1"),
    *("--remote-sync", "s3://lab/runs"),
)
JOB = ("--sagemaker.user", "ada.lovelace", "--sagemaker.instance_type", "p5")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - without_credentials(os.environ).keys():
        monkeypatch.delenv(name)
    for name, value in without_credentials({}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


def launched(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of a launch."""
    code, text = run_vlatool("launch", "sagemaker", *words, "--json")
    return code, json.loads(text)


def planned(*words: str) -> dict[str, Any]:
    code, document = launched("train", *RUN, *JOB, "--dry-run", *words)
    assert code == 0
    return document


def test_dry_run_without_credentials_prints_the_whole_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "pick")  # not for this run, which has no tracker
    document = planned("--sagemaker.volume_size", "200", "--hparams.lr", "3e-4")
    request, name = document["request"], document["job"]
    assert name.startswith("ada-lovelace-vlatool-")
    assert request == {
        "TrainingJobName": name,
        "RoleArn": None,
        "AlgorithmSpecification": {
            "TrainingImage": None,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["vlatool", "train"],
            "ContainerArguments": ["--config", f"/opt/ml/input/data/config/{name}.yaml"],
        },
        "InputDataConfig": [
            {
                "ChannelName": "config",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": f"s3://lab/runs/launch/{name}.yaml",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://lab/runs/launch"},
        "ResourceConfig": {
            "InstanceType": "ml.p5.48xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 200,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 864_000},
        "EnableManagedSpotTraining": False,
        "RetryStrategy": {"MaximumRetryAttempts": 3},
        "Environment": {
            "FI_EFA_FORK_SAFE": "1",
            "NCCL_DEBUG": "WARN",
            "PYTHONUNBUFFERED": "1",
            "VLATOOL_HOSTS": "/opt/ml/input/config/resourceconfig.json",
        },
        "Tags": [
            {"Key": "owner", "Value": "ada.lovelace"},
            {"Key": "project", "Value": "vlatool"},
        ],
    }
    # Each null has a note.
    assert [note.split()[0] for note in document["notes"]] == ["RoleArn", "TrainingImage"]
    run = yaml.safe_load(document["config"])
    assert run["hparams"]["lr"] == 3e-4
    assert run["data"]["dataset_manifest"] == ["s3://lab/data"]
    assert (run["name"], run["save_path"]) == (name, "/opt/ml/runs")
    assert not {"sagemaker", "dry_run"} & run.keys()


def test_options_of_the_job_are_in_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "pick")
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    monkeypatch.setenv("WANDB_API_KEY", "sesame")
    words = ("--tracker", "wandb", "--sagemaker.environment.WANDB_ENTITY", "team")
    words += ("--sagemaker.arn", "arn:aws:iam::1:role/r", "--sagemaker.image", "lab/vlatool:1")
    words += ("--sagemaker.spot", "true", "--sagemaker.max_run", "2")
    document = planned(*words, "--sagemaker.name_prefix", "x" * 80)
    request = document["request"]

    chosen = {name: text for name, text in request["Environment"].items() if "WANDB" in name}
    assert chosen == {"WANDB_PROJECT": "pick", "WANDB_ENTITY": "team"}
    assert document["notes"] == []
    assert request["EnableManagedSpotTraining"]
    assert request["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 172_800,
        "MaxWaitTimeInSeconds": 345_600,
    }
    # A long prefix leaves time and digest whole.
    assert len(document["job"]) == 63
    assert re.fullmatch(r"x+-\d{4}(-\d\d){5}-[0-9a-f]{8}", document["job"])


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (("--data", "data"), 2, "config.local_path"),
        (("--remote-sync", "runs"), 2, "config.local_path"),
        (("--init-from", "runs/first"), 2, "config.local_path"),
        (("--sagemaker.instance_type", "p9"), 2, "usage.instance_type"),
        (("--sagemaker.environment.HF_TOKEN", "hf_x"), 2, "usage.secret"),
        (("--sagemaker.environment.DB", "postgres://ada:hunter22@db/robots"), 2, "usage.secret"),
        (("--sagemaker.image", ""), 2, "config.invalid_value"),
        (("--sagemaker.secrets.HF_TOKEN", ""), 2, "config.invalid_value"),
        (("--sagemaker.local", "true"), 2, "config.refused"),
        (("--sagemaker.usr", "ada"), 2, "config.unknown_key"),
        (("--hparams.lr", "fast"), 2, "config.invalid_value"),
        (("--sagemaker.profile", "no-such-profile"), 6, "environment.aws_profile"),
        ((), 2, "usage.missing_key"),  # `finetune` without a checkpoint
    ],
)
def test_bad_input_is_an_error(
    words: tuple[str, ...], exit_code: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "")  # the command sets it
    command = "train" if words else "finetune"
    done, document = launched(command, *RUN, *JOB, "--dry-run", *words)
    assert (done, document["error"]["code"]) == (exit_code, code)
    assert exit_code == 2 or words[-1] in document["error"]["message"]


def test_keys_of_the_job_may_stand_before_the_command() -> None:
    words = ["--sagemaker.user", "ada", "launch", "--sagemaker.instance_type=p5", "sagemaker"]
    code, text = run_vlatool(*words, *JOB[2:], "train", *RUN, "--dry-run", "--json")
    assert code == 0
    assert json.loads(text)["job"].startswith("ada-vlatool-")


@pytest.mark.parametrize(
    ("name", "gpus"),
    [("p4de", 8), ("ml.g5.12xlarge", 4), ("g6.xlarge", 1), ("c5.xlarge", 0), ("g7.8xlarge", None)],
)
def test_gpus_of_an_instance_type(name: str, gpus: int | None) -> None:
    assert num_gpus(instance_type(name)) == gpus


@pytest.mark.parametrize(
    ("reason", "exit_code"),
    [
        ("AlgorithmError: , exit code: 3", 3),
        ("AlgorithmError: , exit code: 1", 1),
        ("CapacityError: no instance", 6),
    ],
)
def test_failed_job_has_the_exit_code_of_its_command(reason: str, exit_code: int) -> None:
    error = job_error("job", {"TrainingJobStatus": "Failed", "FailureReason": reason})
    assert (error.exit_code, error.code) == (exit_code, "environment.job_failed")


@pytest.fixture
def run(
    data: Path, s3: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """Arguments of a tiny run with data in a bucket; the account has a role."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAGEMAKER_ARN", "arn:aws:iam::123456789012:role/train")
    upload(data, RemotePath(f"s3://{s3_bucket}/data"))
    _, *words = tiny_arguments(data, Path("runs/first"), total_train_steps=2)
    where = ("--remote-sync", f"s3://{s3_bucket}/runs", "--sagemaker.user", "ada")
    local, remote = str(data), f"s3://{s3_bucket}/data"
    one_process = ("--sagemaker.instance_type", "c5.xlarge")
    return (*(word.replace(local, remote) for word in words), *where, *one_process)


def client(service: str) -> Any:
    import boto3

    return boto3.client(service)


def test_job_gets_exactly_the_printed_request_and_reads_the_same_run(run: tuple[str, ...]) -> None:
    image = ("--sagemaker.image", "lab/vlatool:1")
    code, document = launched("train", *run, *image, "--wait")
    assert (code, document["status"]) == (0, "Completed")
    request = document["request"]
    job = client("sagemaker").describe_training_job(TrainingJobName=document["job"])
    tags = client("sagemaker").list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
    job["AlgorithmSpecification"].pop("MetricDefinitions")  # invented by the stand-in
    # The stand-in does not return these two.
    unknown = {key: request[key] for key in ("Environment", "RetryStrategy")}
    known = {key: job[key] for key in request.keys() & job.keys()}
    assert request == {**known, **unknown, "Tags": tags}
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/train"

    there = load_config(TrainConfig, files=[document["config_location"]])
    assert (there.config.name, there.config.save_path) == ("first", "/opt/ml/runs")
    assert there.typed == frozenset()
    assert there.config.total_train_steps == 2


def docker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `docker` that writes its arguments and its input to a file."""
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\ncat >> {folder}/input\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_image_is_built_and_pushed_with_docker(
    run: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = docker(tmp_path / "bin", monkeypatch)
    code, document = launched("train", *run, "--sagemaker.build_only", "true")
    assert (code, document["status"]) == (0, "built")
    image = document["request"]["AlgorithmSpecification"]["TrainingImage"]
    lines = (folder / "log").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["login", "login", "build", "push"]
    assert lines[-1] == f"push {image}"
    password = (folder / "input").read_text()
    assert password
    assert password not in (folder / "log").read_text()
    context = Path(lines[2].split()[-1])
    assert {"Dockerfile", "requirements.txt", "vlatool"} == {
        path.name for path in context.iterdir()
    }
    assert (context / "vlatool/presets/runs").is_dir()


def test_without_docker_the_hint_has_the_three_commands(
    run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, document = launched("train", *run)
    assert (code, document["error"]["code"]) == (6, "environment.docker")
    commands = document["error"]["details"]["commands"]
    assert [command.split("docker ")[1].split()[0] for command in commands] == [
        *("login", "build", "push"),
    ]


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (
            ("--sagemaker.instance_type", "p5", "--sagemaker.instance_count", "3"),
            2,
            "usage.batch_size",
        ),
        (("--sagemaker.arn", "x", "--sagemaker.image", "a:1"), 2, "usage.rejected_request"),
        (("--data", "s3://no-data"), 3, "data.no_manifest"),
        ((), 2, "usage.no_role"),
    ],
)
def test_errors_before_the_job(
    words: tuple[str, ...],
    exit_code: int,
    code: str,
    run: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if words[:1] == ("--data",):
        run, words = tuple(word.replace("/data/", "/no-data/") for word in run), ()
    elif not words:
        monkeypatch.delenv("SAGEMAKER_ARN")
    elif code == "usage.batch_size":
        run = run[:-2]
    done, document = launched("train", *run, *words)
    assert (done, document["error"]["code"]) == (exit_code, code)


def test_secrets_are_read_by_name_in_the_job(run: tuple[str, ...]) -> None:
    store = client("secretsmanager")
    store.create_secret(Name="lab/hub", SecretString="hf_1")
    store.create_secret(Name="lab/wandb", SecretString='{"WANDB_API_KEY": "w_1"}')
    names = ("HF_TOKEN", "lab/hub"), ("WANDB_API_KEY", "lab/wandb")
    words = [word for key, name in names for word in (f"--sagemaker.secrets.{key}", name)]
    code, document = launched("train", *run, *words, "--dry-run")
    assert code == 0
    assert "hf_1" not in json.dumps(document)
    stored = document["request"]["Environment"]["VLATOOL_SECRETS"]
    assert load_secrets(stored) == {"HF_TOKEN": "hf_1", "WANDB_API_KEY": "w_1"}
