"""`vlatool launch sagemaker`: the request, the configuration of the run, and rejected input."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.builders.s3_runs import upload
from tests.builders.s3_server import S3Server, without_credentials
from tests.builders.training import tiny_arguments
from tests.surface.invoke import run_vlatool
from vlatool import __version__
from vlatool.config.resolve import load_config
from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.launching.sagemaker import Account, load_secrets
from vlatool.launching.sagemaker_job import SageMakerConfig, check_volume, instance_type, num_gpus
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
    monkeypatch.setenv("GIT_DIR", "/no-checkout")


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
            "HF_HOME": "/tmp/vlatool/huggingface",
            "NCCL_DEBUG": "WARN",
            "PYTHONUNBUFFERED": "1",
            "SM_USE_RESERVED_CAPACITY": "1",
            "VLATOOL_HOSTS": "/opt/ml/input/config/resourceconfig.json",
            "XDG_CACHE_HOME": "/tmp/vlatool/cache",
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
    assert run["save_path"] == "/tmp/vlatool/runs"
    model, _, digest = run["name"].partition("-")
    assert (model, len(digest)) == ("diffusion_policy", 8)
    assert not {"sagemaker", "dry_run"} & run.keys()


def test_options_of_the_job_are_in_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "pick")
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    monkeypatch.setenv("WANDB_API_KEY", "sesame")
    words = ("--tracker", "wandb", "--sagemaker.environment.WANDB_ENTITY", "team")
    words += (
        "--sagemaker.secrets.WANDB_API_KEY",
        "lab/wandb",
        "--sagemaker.image",
        "lab/vlatool:1",
    )
    words += ("--sagemaker.arn", "arn:aws:iam::123456789012:role/r")
    words += ("--sagemaker.spot", "true", "--sagemaker.max_run", "2")
    document = planned(*words, "--sagemaker.name_prefix", "x" * 80)
    request = document["request"]

    chosen = {name: text for name, text in request["Environment"].items() if "WANDB" in name}
    assert chosen == {"WANDB_PROJECT": "pick", "WANDB_ENTITY": "team"}
    assert request["Environment"]["VLATOOL_SECRETS"] == '{"WANDB_API_KEY": "lab/wandb"}'
    assert document["notes"] == ["TrainingImage was not checked: there are no AWS credentials here"]
    assert request["EnableManagedSpotTraining"]
    assert request["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 172_800,
        "MaxWaitTimeInSeconds": 345_600,
    }
    # A long prefix leaves time and digest whole.
    assert len(document["job"]) == 63
    assert re.fullmatch(r"x+-\d{4}(-\d\d){5}-[0-9a-f]{8}", document["job"])


@pytest.mark.parametrize(
    ("kind", "resources"),
    [
        ("c5.xlarge", {"VolumeKmsKeyId": "key-1"}),
        ("p5", {}),  # its own disks have keys of their own
    ],
)
def test_network_key_and_warm_pool_are_in_the_request(kind: str, resources: dict[str, str]) -> None:
    words = ("--sagemaker.subnets", "subnet-1,subnet-2", "--sagemaker.security_group_ids", "sg-1")
    words += ("--sagemaker.kms_key", "key-1", "--sagemaker.keep_alive_period", "300")
    request = planned("--sagemaker.instance_type", kind, *words)["request"]
    assert request["VpcConfig"] == {
        "Subnets": ["subnet-1", "subnet-2"],
        "SecurityGroupIds": ["sg-1"],
    }
    assert request["OutputDataConfig"]["KmsKeyId"] == "key-1"
    assert request["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 300
    names = {"VolumeKmsKeyId"} & request["ResourceConfig"].keys()
    assert {name: request["ResourceConfig"][name] for name in names} == resources


def test_commit_and_difference_of_the_checkout_go_with_the_job(
    run: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=ada", "-c", "user.email=ada@lab", "-C", str(tmp_path / "code")]
    monkeypatch.delenv("GIT_DIR")
    subprocess.run(["git", "init", "-q", "-b", "pick", tmp_path / "code"], check=True)
    (tmp_path / "code" / "plan.txt").write_text("first\n")
    subprocess.run([*git, "add", "plan.txt"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "plan"], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    token = "hf_" + "a1" * 20
    (tmp_path / "code" / "plan.txt").write_text(f"second {token}\n")
    monkeypatch.chdir(tmp_path / "code")

    code, document = launched("train", *run, "--sagemaker.image", "lab/vlatool:1")

    assert (code, document["status"]) == (0, "InProgress")
    environment = document["request"]["Environment"]
    assert {name: text for name, text in environment.items() if "VLA_GIT" in name} == {
        "VLA_GIT_COMMIT_HASH": commit,
        "VLA_GIT_BRANCH": "pick",
        "VLA_GIT_HAS_LOCAL_CHANGES": "true",
        "VLA_GIT_DIFF_FILE": f"{document['job']}.diff",
    }
    folder = document["config_location"].rpartition("/")[0]
    difference = RemotePath(f"{folder}/{document['job']}.diff").read_text()
    assert "-first\n+second ...\n" in difference


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (("--data", "data"), 2, "config.invalid_value"),
        (("--remote-sync", "runs"), 2, "config.invalid_value"),
        (("--init-from", "runs/first"), 2, "config.invalid_value"),
        (("--sagemaker.instance_type", "p9"), 2, "usage.bad_value"),
        (("--sagemaker.environment.HF_TOKEN", "hf_x"), 2, "usage.secret"),
        (("--sagemaker.environment.DB", "postgres://ada:hunter22@db/robots"), 2, "usage.secret"),
        (("--sagemaker.image", ""), 2, "config.invalid_value"),
        (("--sagemaker.secrets.HF_TOKEN", ""), 2, "config.invalid_value"),
        (("--sagemaker.local", "true"), 2, "config.unsupported"),
        (("--sagemaker.usr", "ada"), 2, "config.unknown_key"),
        (("--hparams.lr", "fast"), 2, "config.invalid_value"),
        (("--sagemaker.subnets", "subnet-1"), 2, "config.contradiction"),
        (("--sagemaker.build_only", "true"), 2, "config.unsupported"),
        (("--tracker", "wandb"), 2, "usage.missing_key"),
        (("--sagemaker.profile", "no-such-profile"), 6, "environment.credentials"),
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


@pytest.mark.parametrize(
    ("name", "gpus"),
    [("p4de", 8), ("ml.g5.12xlarge", 4), ("g6.xlarge", 1), ("c5.xlarge", 0), ("g7.8xlarge", None)],
)
def test_gpus_of_an_instance_type(name: str, gpus: int | None) -> None:
    assert num_gpus(instance_type(name)) == gpus


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


def test_job_has_what_was_asked_for_and_reads_the_same_run(
    run: tuple[str, ...], s3_bucket: str
) -> None:
    image = ("--sagemaker.image", "lab/vlatool:1", "--sagemaker.keep_alive_period", "60")
    code, document = launched("train", *run, *image)
    assert (code, document["status"]) == (0, "InProgress")
    name = document["job"]
    job = client("sagemaker").describe_training_job(TrainingJobName=name)
    asked = document["request"]
    for key in ("InputDataConfig", "ResourceConfig", "StoppingCondition"):
        assert job[key] == asked[key]
    assert asked["AlgorithmSpecification"].items() <= job["AlgorithmSpecification"].items()
    assert job["AlgorithmSpecification"]["TrainingImage"] == "lab/vlatool:1"
    assert job["RoleArn"] == "arn:aws:iam::123456789012:role/train"
    assert job["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 60
    location = f"s3://{s3_bucket}/runs/launch/{name}.yaml"
    tags = client("sagemaker").list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"owner": "ada", "project": "vlatool"}

    config = load_config(TrainConfig, files=[location])
    assert (config.config.name, config.config.save_path) == ("first", "/tmp/vlatool/runs")
    assert config.typed == frozenset()
    assert config.config.total_train_steps == 2

    code, document = launched("train", *run, *image)
    assert (code, document["error"]["code"]) == (2, "usage.output_in_use")
    assert document["error"]["details"]["job"] == name
    code, document = launched("train", *run, *image, "--again")
    assert (code, document["status"]) == (0, "InProgress")


@pytest.mark.parametrize("command", ["status", "stop"])
def test_command_on_a_job_without_its_name_shows_the_form(command: str) -> None:
    code, text = run_vlatool("launch", command, "--json")
    assert (code, json.loads(text)["error"]["code"]) == (2, "usage.missing_key")


def test_state_and_end_of_a_job_by_its_name(run: tuple[str, ...]) -> None:
    name = launched("train", *run, "--sagemaker.image", "lab/vlatool:1")[1]["job"]

    def job(*words: str) -> dict[str, Any]:
        code, text = run_vlatool("launch", *words, "--json")
        assert code == 0, text
        return json.loads(text)

    assert job("stop", name, "--dry-run")["status"] != "Stopped"
    state = job("status", name)
    assert (state["instances"], state["config_location"][-5:]) == ("1 x ml.c5.xlarge", ".yaml")
    job("stop", name)
    assert job("status", name)["status"] in ("Completed", "Stopped")

    code, text = run_vlatool("launch", "status", "no-such-job", "--json")
    assert (code, json.loads(text)["error"]["code"]) == (2, "usage.unknown_name")


def test_a_job_without_an_image_needs_the_one_of_this_version(run: tuple[str, ...]) -> None:
    code, document = launched("train", *run)
    assert (code, document["error"]["code"]) == (2, "usage.unknown_name")
    assert document["error"]["details"]["image"].endswith(f"/vlatool:{__version__}")


def test_image_that_is_not_in_the_registry_is_an_error_of_a_dry_run(run: tuple[str, ...]) -> None:
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/lab/policy:1"
    words = ("train", *run, "--sagemaker.image", image, "--dry-run")
    code, document = launched(*words)
    assert (code, document["error"]["code"]) == (2, "usage.unknown_name")
    client("ecr").create_repository(repositoryName="lab/policy")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    client("ecr").put_image(
        repositoryName="lab/policy", imageTag="1", imageManifest=json.dumps(manifest)
    )
    code, document = launched(*words)
    assert (code, document["notes"]) == (0, [])


@pytest.mark.parametrize(
    ("key", "code", "reason"),
    [
        ("denied", "environment.credentials", "iam:ListRoles"),
        ("unknown", "environment.credentials", "security token"),
    ],
)
def test_credentials_that_are_denied_or_rejected_are_an_error(
    key: str, code: str, reason: str, run: tuple[str, ...], s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    iam = client("iam")
    iam.create_user(UserName=key)
    pair = iam.create_access_key(UserName=key)["AccessKey"]
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    iam.put_user_policy(
        UserName=key,
        PolicyName="storage",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}),
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", pair["AccessKeyId"] if key == "denied" else "AKIAX")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", pair["SecretAccessKey"])
    url, header = f"{s3.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    # From now on, the server checks signatures and policies.
    urlopen(Request(url, b"0", header)).close()
    try:
        with pytest.raises(EnvironmentProblem, match=reason) as caught:
            # The server answers services with requests in JSON in XML, too, unlike AWS.
            Account().call("iam", "list_roles")
    finally:
        urlopen(Request(url, b"inf", header)).close()
    assert caught.value.code == code


def test_volume_is_large_enough_for_the_checkpoints() -> None:
    config = SageMakerConfig(instance_type="c5.xlarge", volume_size=30)
    check_volume(config, 30 * 10**9)
    with pytest.raises(UsageError, match=r"30\.0 GB") as caught:
        check_volume(config, 82 * 10**9)
    assert "--sagemaker.volume_size 92" in caught.value.hint
    check_volume(config.model_copy(update={"instance_type": "p5"}), 82 * 10**9)


def container(
    root: Path, host: str, document: dict[str, Any], env: Mapping[str, str]
) -> subprocess.Popen[str]:
    """The entry of a job in one of two containers, as SageMaker starts it; `root` is its `/`."""
    request, name = document["request"], document["job"]
    config, channel = root / "opt/ml/input/config", root / "opt/ml/input/data/config"
    config.mkdir(parents=True)
    channel.mkdir(parents=True)
    hosts = {"current_host": host, "hosts": ["127.0.0.1", "127.0.0.2"]}
    (config / "resourceconfig.json").write_text(json.dumps(hosts))

    def there(text: str) -> str:
        return text.replace("/opt/ml", f"{root}/opt/ml").replace("/tmp/vlatool", f"{root}/tmp")

    (channel / f"{name}.yaml").write_text(there(document["config"]))
    entry = request["AlgorithmSpecification"]
    program, *words = entry["ContainerEntrypoint"] + entry["ContainerArguments"]
    assert program == "vlatool"
    variables = {key: there(text) for key, text in request["Environment"].items()}
    return subprocess.Popen(
        [sys.executable, "-m", "vlatool", *map(there, words)],
        env={**env, **variables, "OMP_NUM_THREADS": "1"},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_entry_of_the_image_trains_on_two_machines_to_a_checkpoint_in_the_bucket(
    run: tuple[str, ...], s3: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    client("secretsmanager").create_secret(Name="lab/entry", SecretString="sesame")
    secret = ("--sagemaker.secrets.LAB_KEY", "lab/entry")
    code, document = launched(
        *("train", *run, "--sagemaker.instance_count", "2", "--sagemaker.image", "a:1"),
        *("--dry-run", "--hparams.global_batch_size", "8", *secret),
    )
    assert code == 0, document
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **s3.env}
    machines = [
        container(tmp_path / host, host, document, env) for host in ("127.0.0.1", "127.0.0.2")
    ]
    logs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], logs
    copy = RemotePath(f"s3://{s3_bucket}/runs/first")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert config["distributed"]["world_size"] == 2
    assert (copy / "checkpoints/step_00000002/manifest.json").is_file()
    # Run and caches of the first machine are on the volume.
    assert {path.name for path in (tmp_path / "127.0.0.1/tmp").iterdir()} == {"runs", "cache"}
    assert "sesame" not in "".join(logs)


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (
            ("--sagemaker.instance_type", "p5", "--sagemaker.instance_count", "3"),
            2,
            "usage.bad_value",
        ),
        (("--sagemaker.arn", "x", "--sagemaker.image", "a:1"), 2, "usage.bad_value"),
        (("--data", "s3://no-data"), 3, "data.no_source"),
        ((), 2, "usage.missing_key"),
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
    elif code == "usage.bad_value":
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
