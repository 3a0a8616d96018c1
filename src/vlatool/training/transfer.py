"""Micro-batches on their way to the device, one step ahead of the model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlatool.loading.base import MicroBatch


def moved(value: Any, device: torch.device) -> Any:
    """A value with every tensor in it on the device; mappings and sequences are gone through."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple):
        parts = [moved(one, device) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def on_device(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches on the device; with a GPU the next is copied while the last is computed."""
    if device.type != "cuda":
        for one in batches:
            yield replace(one, batch=moved(one.batch, device))
        return
    stream = torch.cuda.Stream(device)
    ahead: MicroBatch | None = None
    for one in batches:
        with torch.cuda.stream(stream):
            copied = replace(one, batch=moved(one.batch, device))
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        _keep(copied.batch, torch.cuda.current_stream(device))
        ahead = copied
    if ahead is not None:
        yield ahead


def _keep(value: Any, stream: "torch.cuda.Stream") -> None:
    """Memory that one stream filled is not used again before the other has read it."""
    if isinstance(value, Tensor):
        value.record_stream(stream)
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            _keep(one, stream)
