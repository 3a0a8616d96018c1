"""The cluster file for `ray up` in the docs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TEXT = (Path(__file__).parents[3] / "docs" / "reference" / "ray-cluster.yaml").read_text()


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
    "real",
    [r"(ami|subnet|sg|vpc)-[0-9a-f]{8,}", r"\b\d{12}\b", r"\b\d+\.\d+\.\d+\.\d+\b", r"s3://", "@"],
    ids=["aws_id", "account", "address", "bucket", "person"],
)
def test_nothing_looks_like_a_real_identity(real: str) -> None:
    assert re.search(real, TEXT) is None
