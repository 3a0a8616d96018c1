"""File of a Ray cluster: its template, and the values in place of placeholders."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlatool.errors import UsageError
from vlatool.launching import ray_file
from vlatool.launching.ray_file import (
    RayClusterConfig,
    filled,
    left_placeholders,
    placeholder_error,
    template,
)

TEXT = template()
VALUES = {
    "image": "ami-0abc",
    "key_pair": "robots",
    "subnet": "subnet-1a",
    "security_group": "sg-2b",
    "account": "123456789012",
    "head_profile": "head",
    "worker_profile": "worker",
}


def test_size_and_machines_are_those_of_the_published_template() -> None:
    # Source: formats/lbm-preprocessing 3.5.
    cluster: dict[str, Any] = yaml.safe_load(TEXT)
    head, worker = (cluster["available_node_types"][name] for name in ("head", "worker"))
    assert (worker["min_workers"], worker["max_workers"]) == (10, 120)
    assert (cluster["max_workers"], cluster["idle_timeout_minutes"]) == (120, 10)
    assert cluster["provider"]["region"] == "us-east-1"
    assert head["node_config"]["InstanceType"] == "m5.xlarge"
    assert head["resources"] == {"CPU": 0}
    assert worker["node_config"]["InstanceType"] == "i4i.4xlarge"
    assert cluster["head_node_type"] == "head"
    for node in (head["node_config"], worker["node_config"]):
        networks = (*node["SubnetIds"], *node["SecurityGroupIds"])
        names = (cluster["auth"]["ssh_private_key"], node["ImageId"], node["KeyName"])
        identities = (*names, *networks, node["IamInstanceProfile"]["Arn"])
        assert all("PLACEHOLDER" in identity for identity in identities)
    setup = "\n".join(cluster["setup_commands"])
    assert "pip install 'vlatool[ray]'" in setup
    assert "nofile 65536" in setup
    assert setup.index("cloud-init status --wait") < setup.index("apt-get")
    assert setup.count("apt-get") == setup.count("DPkg::Lock::Timeout")
    for role in ("head", "worker"):
        assert "ulimit -n 65536" in cluster[f"{role}_start_ray_commands"][-1]
    autoscaler = pytest.importorskip("ray.autoscaler._private.util")
    autoscaler.validate_config(autoscaler.prepare_config(cluster))


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({}, f"'vlatool[ray]=={version('vlatool')}'"),
        (
            {"url": "https://git.lab/vlatool", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            "'vlatool[ray] @ git+https://git.lab/vlatool@0a1b'",
        ),
        ({"url": "file:///w/vlatool-1.whl"}, '"$HOME/vlatool-1.whl[ray]"'),
    ],
    ids=["index", "git", "wheel"],
)
def test_nodes_install_the_program_that_is_here(
    origin: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_file, "_origin", lambda: origin)
    cluster = yaml.safe_load(ray_file.with_program(TEXT, Path("/cluster")))
    assert f"~/vlatool-env/bin/pip install {line}" in cluster["setup_commands"]


def test_credential_in_the_address_of_the_program_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin = {"url": "https://ada:hunter22@git.lab/v", "vcs_info": {"commit_id": "0a1b"}}
    monkeypatch.setattr(ray_file, "_origin", lambda: origin)
    with pytest.raises(UsageError) as caught:
        ray_file.with_program(TEXT, Path("/cluster"))
    assert caught.value.code == "usage.secret"
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "real",
    [r"(ami|subnet|sg|vpc)-[0-9a-f]{8,}", r"\b\d{12}\b", r"\b\d+\.\d+\.\d+\.\d+\b", r"s3://", "@"],
    ids=["aws_id", "account", "address", "bucket", "person"],
)
def test_nothing_looks_like_a_real_identity(real: str) -> None:
    assert re.search(real, TEXT) is None


def test_values_replace_every_placeholder() -> None:
    text = filled(TEXT, RayClusterConfig.model_validate(VALUES))
    nodes = yaml.safe_load(text)["available_node_types"]
    profile = nodes["worker"]["node_config"]["IamInstanceProfile"]["Arn"]
    assert profile == "arn:aws:iam::123456789012:instance-profile/worker"
    assert left_placeholders(text) == {}
    with pytest.raises(UsageError) as caught:  # another value than that of the file
        filled(text, RayClusterConfig(image="ami-0def"))
    assert caught.value.details["key"] == "ray.image"


def test_error_names_the_placeholders_that_are_left_and_their_options() -> None:
    config = RayClusterConfig.model_validate(VALUES | {"subnet": None})
    text = filled(TEXT, config) + "extra: PLACEHOLDER-OF-MINE  # PLACEHOLDER in a comment\n"
    error = placeholder_error(config, left_placeholders(text))
    assert {*error.details["placeholders"]} == {"subnet-PLACEHOLDER", "PLACEHOLDER-OF-MINE"}
    assert "--ray.subnet" in error.hint
    assert "--ray.image" not in error.hint
