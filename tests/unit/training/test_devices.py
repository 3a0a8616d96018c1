"""Arithmetic of GPUs by the names that torch reports, and of processors."""

import pytest

from tests.builders.recording import Recorder
from vlatool.training import setup
from vlatool.training.config import HParams, TrainConfig
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
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),  # a seventh of it
        ("NVIDIA A10G", None),  # not an A10
        ("NVIDIA RTX A4000", None),  # not an A40
        ("NVIDIA GB200", None),  # not a B200
    ],
)
def test_peak_is_that_of_the_whole_name(name: str, tflops: float | None) -> None:
    assert bfloat16_tflops(name) == tflops


@pytest.mark.parametrize(
    ("precision", "has_bfloat16", "codes"),
    [
        ("amp_bfloat16", False, ["slow_precision"]),
        ("amp_bfloat16", True, []),
        ("float32", False, []),
    ],
)
def test_bfloat16_is_a_warning_where_the_processor_lacks_it(
    precision: str, has_bfloat16: bool, codes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_has_bfloat16", lambda: has_bfloat16)
    recorder = Recorder()
    config = TrainConfig(hparams=HParams.model_validate({"precision": precision}))
    setup.report_precision(config, recorder)
    assert [code for code, _ in recorder.warnings] == codes
