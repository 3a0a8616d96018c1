"""Limits of containers: control groups of both versions, as the kernel shows them."""

import math
from pathlib import Path

import pytest

from vlatool.jobs.machine import Cgroups, memory, processors

GIB = 2**30


@pytest.mark.parametrize(
    ("own", "files", "cpus", "size"),
    [
        ("0::/", {"cpu.max": "50000 100000", "memory.max": str(2 * GIB)}, 0.5, 2 * GIB),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, math.inf, math.inf),
        (
            "0::/job/step",
            {"job/step/cpu.max": "400000 100000", "job/cpu.max": "150000 100000"},
            1.5,
            math.inf,
        ),
        ("0::/job/step", {"job/memory.max": str(GIB), "job/step/memory.max": "max"}, math.inf, GIB),
        ("0::/of/the/host", {"memory.max": str(GIB)}, math.inf, GIB),
        (
            "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/",
            {
                "memory/docker/a/memory.limit_in_bytes": str(GIB),
                "cpu/docker/a/cpu.cfs_quota_us": "300000",
                "cpu/docker/a/cpu.cfs_period_us": "100000",
            },
            3.0,
            GIB,
        ),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1"}, math.inf, math.inf),
        ("", {}, math.inf, math.inf),
    ],
    ids=[
        "v2",
        "v2 without",
        "v2 nested",
        "v2 memory of a parent",
        "v2 of the host",
        "v1",
        "v1 without",
        "none",
    ],
)
def test_smallest_limit_counts(
    own: str, files: dict[str, str], cpus: float, size: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    groups = Cgroups(tmp_path / "own", tmp_path)
    assert (groups.processors(), groups.memory()) == (cpus, size)


def test_this_machine_has_a_processor_and_memory() -> None:
    assert processors() >= 1
    assert memory() > 2**20
