"""Arithmetic of GPUs by the names that torch reports."""

import pytest

from vlatool.training.placement import bfloat16_tflops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),  # a seventh of it
        ("NVIDIA A10G", None),  # not an A10
        ("NVIDIA RTX A4000", None),  # not an A40
        ("NVIDIA GB200", None),  # not a B200
    ],
)
def test_peak_is_that_of_the_whole_name(name: str, tflops: float | None) -> None:
    assert bfloat16_tflops(name) == tflops
