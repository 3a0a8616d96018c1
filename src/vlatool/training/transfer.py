"""Transfer of micro-batches to the device while the model computes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlatool.loading.base import MicroBatch


def to_device(value: Any, device: torch.device) -> Any:
    """The value with every tensor on the device, in nested dicts and lists too."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list) else value


def prefetch_to_device(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches on the device; a GPU copies the next one while it computes the last one."""
    if device.type != "cuda":
        for micro_batch in batches:
            yield replace(micro_batch, batch=to_device(micro_batch.batch, device))
        return
    stream = torch.cuda.Stream(device)
    for micro_batch in batches:
        # Only work that is queued from here on waits for the copy; earlier work goes ahead.
        with torch.cuda.stream(stream):
            copied = replace(micro_batch, batch=to_device(micro_batch.batch, device))
        torch.cuda.current_stream(device).wait_stream(stream)
        _record_stream(copied.batch, torch.cuda.current_stream(device))
        yield copied


def _record_stream(value: Any, stream: "torch.cuda.Stream") -> None:
    """Protects memory of another stream from reuse until `stream` has read it."""
    if isinstance(value, Tensor):
        value.record_stream(stream)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _record_stream(item, stream)
