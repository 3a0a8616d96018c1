"""Micro-batches on their way to the device, while the model computes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlatool.loading.base import MicroBatch


def to_device(value: Any, device: torch.device) -> Any:
    """A value with every tensor in it on the device; dicts and lists are gone through."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: to_device(one, device) for name, one in value.items()}
    return [to_device(one, device) for one in value] if isinstance(value, list) else value


def prefetch_to_device(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches on the device; a GPU copies the next while it computes the last."""
    if device.type != "cuda":
        for one in batches:
            yield replace(one, batch=to_device(one.batch, device))
        return
    stream = torch.cuda.Stream(device)
    for one in batches:
        # The model still computes what it was given last: only what comes now waits for the copy.
        with torch.cuda.stream(stream):
            copied = replace(one, batch=to_device(one.batch, device))
        torch.cuda.current_stream(device).wait_stream(stream)
        _record_stream(copied.batch, torch.cuda.current_stream(device))
        yield copied


def _record_stream(value: Any, stream: "torch.cuda.Stream") -> None:
    """Memory that one stream filled is not used again before the other has read it."""
    if isinstance(value, Tensor):
        value.record_stream(stream)
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _record_stream(one, stream)
