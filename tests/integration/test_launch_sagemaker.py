"""`vlatool launch sagemaker`: the request, the configuration of the run, and rejected input."""

import json
from typing import Any

import pytest
import yaml

from tests.builders.s3_server import without_credentials
from tests.surface.invoke import run_vlatool

RUN = (
    *("--preset", "diffusion-policy-bellpepper", "--data", "s3://lab/data", "--num-epochs", "1"),
    *("--remote-sync", "s3://lab/runs"),
)
JOB = ("--sagemaker.user", "ada.lovelace", "--sagemaker.instance_type", "p5")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

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


def test_dry_run_without_credentials_prints_the_whole_request() -> None:
    request = planned("--sagemaker.volume_size", "200")["request"]
    name = request["TrainingJobName"]
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
        "Environment": {"FI_EFA_FORK_SAFE": "1", "NCCL_DEBUG": "WARN", "PYTHONUNBUFFERED": "1"},
        "Tags": [
            {"Key": "owner", "Value": "ada.lovelace"},
            {"Key": "project", "Value": "vlatool"},
        ],
    }


def test_each_null_of_a_plan_has_a_note() -> None:
    notes = planned()["notes"]
    assert [note.partition(":")[0] for note in notes] == ["RoleArn", "TrainingImage"]
    known = ("--sagemaker.arn", "arn:aws:iam::1:role/r", "--sagemaker.image", "lab/vlatool:1")
    assert planned(*known)["notes"] == []


def test_configuration_of_the_job_is_that_of_the_command_line() -> None:
    document = planned("--hparams.lr", "3e-4")
    run = yaml.safe_load(document["config"])
    assert run["hparams"]["lr"] == 3e-4
    assert run["data"]["dataset_manifest"] == ["s3://lab/data"]
    assert (run["name"], run["save_path"]) == (document["job"], "/opt/ml/runs")
    assert not {"sagemaker", "dry_run"} & run.keys()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--data", "data"), "launch.local_path"),
        (("--remote-sync", "runs"), "launch.local_path"),
        (("--init-from", "runs/first"), "launch.local_path"),
        (("--sagemaker.instance_type", "p9"), "launch.instance_type"),
        (("--sagemaker.environment.HF_TOKEN", "hf_x"), "launch.secret"),
        (("--sagemaker.local", "true"), "config.refused"),
        (("--sagemaker.usr", "ada"), "config.unknown_key"),
        (("--hparams.lr", "fast"), "config.invalid_value"),
    ],
)
def test_bad_input_is_a_usage_error(words: tuple[str, str], code: str) -> None:
    exit_code, document = launched("train", *RUN, *JOB, "--dry-run", *words)
    assert (exit_code, document["error"]["code"]) == (2, code)


def test_finetune_needs_a_checkpoint() -> None:
    exit_code, document = launched("finetune", *RUN, *JOB, "--dry-run")
    assert (exit_code, document["error"]["code"]) == (2, "usage.missing_key")
