"""Memory that a device of a run has used, and the arithmetic that it can do."""

import re
import resource
import sys

import torch

# Dense TFLOP/s of matrix products in bfloat16, by words of the name that torch reports; the first
# row whose words are all there counts. Source: reference/training 5.4
_PEAKS: dict[str, float | None] = {
    "B200": 2250.0,
    "H200 NVL": None,  # not the rate of the next row
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A40": 150.0,
    "A10": 125.0,
}
_TF32_SHARE = 0.5  # of the rate in bfloat16, on all of them


def peak_memory(device: torch.device) -> int:
    """Most bytes so far of the tensors on a GPU; without one, of this process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def peak_tflops(device: torch.device, *, mixed: bool) -> float | None:
    """TFLOP/s of dense matrix products on a device; None if unknown, as for a CPU."""
    if device.type != "cuda":
        return None
    peak = bfloat16_tflops(torch.cuda.get_device_name(device))
    return peak if peak is None or mixed else _TF32_SHARE * peak


def bfloat16_tflops(name: str) -> float | None:
    """TFLOP/s of a GPU in bfloat16, by its name; None if unknown, as for a part of a GPU (MIG)."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    known = (peak for row, peak in _PEAKS.items() if words.issuperset(row.split()))
    return None if "MIG" in words else next(known, None)
