"""Memory that a device of a run has used, and the arithmetic that it can do."""

import resource
import sys

import torch

# Dense TFLOP/s of matrix products by the makers' data sheets, in bfloat16 and TF32, by a part of
# the name. The first one that matches counts.
_PEAKS = {
    "B200": (2250.0, 1125.0),
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 417.0),
    "H100": (989.0, 494.0),
    "GH200": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "A800": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "L40": (181.0, 90.5),
    "L4": (121.0, 60.0),
    "A40": (150.0, 75.0),
    "A10": (125.0, 62.5),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def peak_memory(device: torch.device) -> int:
    """Most bytes so far of the tensors on a GPU; without one, of this process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def peak_tflops(device: torch.device, *, mixed: bool) -> float | None:
    """TFLOP/s of dense matrix products on a device; None if unknown, as for a CPU.

    Args:
        device: The device.
        mixed: Products are in bfloat16, not in TF32.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = (peaks for part, peaks in _PEAKS.items() if part in name)
    peaks = next(known, None)
    return None if peaks is None else peaks[0 if mixed else 1]
