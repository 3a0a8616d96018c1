"""Driver of the arm SO-101: six servos of Feetech (STS3215) on a serial bus, and cameras by OpenCV.

    pip install pyserial opencv-python

This file was tested against a simulated bus, and never on hardware: try it with the arm held, and
a hand on the power switch. Registers and frames are those of Feetech's memory table of the STS3215.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from robot import Command, Observation

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STATE = "state.joints"  # degrees [6], 0 at the middle of the range
ACTION = "action.joints"
BAUD = 1_000_000
STEPS = 4096  # of a turn

WRITE, SYNC_READ, SYNC_WRITE = 0x03, 0x82, 0x83
ALL = 0xFE
TORQUE, GOAL, POSITION = 40, 42, 56  # registers


class BusError(RuntimeError):
    """A servo did not answer, or its answer is damaged."""


class Bus:
    """Serial bus of Feetech servos; `port` has `read(size)`, `write(data)`,
    `reset_input_buffer()` and `close()`, as `serial.Serial` has.
    """

    def __init__(self, port: Any) -> None:
        self._port = port

    def write(self, servo: int, register: int, data: bytes) -> None:
        """Writes registers of a servo, or of all (`ALL`), without waiting for an answer."""
        self._port.reset_input_buffer()
        self._send(servo, WRITE, bytes([register]) + data)
        if servo != ALL:
            self._answer(servo, 0)

    def write_words(self, register: int, values: Mapping[int, int]) -> None:
        """Writes a word of two bytes to several servos at once."""
        data = bytes([register, 2])
        for servo, value in values.items():
            data += bytes([servo]) + struct.pack("<H", value)
        self._send(ALL, SYNC_WRITE, data)

    def read_words(self, register: int, servos: Sequence[int]) -> list[int]:
        """Reads a word of two bytes of several servos.

        Raises:
            BusError: A servo does not answer, or its answer is damaged.
        """
        self._port.reset_input_buffer()
        self._send(ALL, SYNC_READ, bytes([register, 2, *servos]))
        words: list[int] = []
        for servo in servos:
            words += struct.unpack("<H", self._answer(servo, 2))
        return words

    def close(self) -> None:
        self._port.close()

    def _send(self, servo: int, instruction: int, data: bytes) -> None:
        body = bytes([servo, len(data) + 2, instruction]) + data
        self._port.write(b"\xff\xff" + body + bytes([checksum(body)]))

    def _answer(self, servo: int, size: int) -> bytes:
        frame = self._port.read(6 + size)  # ff ff, servo, length, error, data, checksum
        if len(frame) < 6 + size:
            raise BusError(f"servo {servo} does not answer: check power, cable and its number")
        body = frame[2:-1]
        is_whole = frame[:2] == b"\xff\xff" and frame[-1] == checksum(body)
        if not is_whole or body[0] != servo:
            raise BusError(f"the answer of servo {servo} is damaged: {frame.hex()}")
        return body[3:]


def checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF


class SO101:
    """SO-101 with any number of cameras.

    Args:
        port: Serial port such as /dev/ttyACM0, or an open port.
        cameras: Camera of the policy to the number of the device, as OpenCV counts them.
    """

    def __init__(self, port: Any, cameras: Mapping[str, int] | None = None) -> None:
        self._port = port
        self._devices = cameras or {}
        self._captures: dict[str, Any] = {}
        self._bus: Bus | None = None
        self._servos = list(range(1, len(JOINTS) + 1))

    def connect(self) -> None:
        port = self._port
        if isinstance(port, str):
            import serial

            port = serial.Serial(port, BAUD, timeout=0.02)
        self._bus = Bus(port)
        held = self._bus.read_words(POSITION, self._servos)
        self._bus.write_words(GOAL, dict(zip(self._servos, held, strict=True)))  # where it is
        for servo in self._servos:
            self._bus.write(servo, TORQUE, b"\x01")
        for name, device in self._devices.items():
            import cv2

            self._captures[name] = cv2.VideoCapture(device)

    def observe(self) -> Observation:
        assert self._bus is not None, "connect first"
        seen: Observation = {STATE: degrees(self._bus.read_words(POSITION, self._servos))}
        for name, capture in self._captures.items():
            is_read, image = capture.read()
            if not is_read:
                raise RuntimeError(f"the camera {name} gives no image")
            seen[name] = np.ascontiguousarray(image[..., ::-1])  # BGR to RGB
        return seen

    def act(self, command: Command) -> None:
        assert self._bus is not None, "connect first"
        goals = steps(command[ACTION])
        self._bus.write_words(GOAL, dict(zip(self._servos, goals, strict=True)))

    def stop(self) -> None:
        """Holds the measured position; the arm keeps its torque, so that it does not fall."""
        if self._bus is None:
            return
        held = self._bus.read_words(POSITION, self._servos)
        self._bus.write_words(GOAL, dict(zip(self._servos, held, strict=True)))

    def release(self) -> None:
        """Switches the torque off: hold the arm, it falls."""
        if self._bus is not None:
            for servo in self._servos:
                self._bus.write(servo, TORQUE, b"\x00")


class Leader:
    """A second arm that a person moves: its joints are the commands."""

    def __init__(self, port: Any) -> None:
        self._arm = SO101(port)
        self._arm.connect()
        self._arm.release()

    def reset(self, seed: int | None = None, *, command: Any = None) -> None: ...

    def step(self, observation: Mapping[str, Any]) -> Command:
        return {ACTION: self._arm.observe()[STATE]}


def degrees(words: Sequence[int]) -> np.ndarray:
    """Angles [C] in degrees of positions from 0 to 4095, 0 at the middle."""
    return (np.asarray(words, np.float64) - STEPS / 2) * 360 / STEPS


def steps(angles: np.ndarray) -> list[int]:
    """Positions of angles [C] in degrees, within the range of a servo."""
    words = np.rint(np.asarray(angles) * STEPS / 360 + STEPS / 2)
    return np.clip(words, 0, STEPS - 1).astype(int).tolist()
