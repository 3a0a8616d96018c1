"""`examples/robot`: the loop over the built-in world and a policy server, and the bus of SO-101."""

import importlib
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import vlatool
from tests.builders.serving import server_of
from vlatool.episode import Array, Observation, ObservationSpec
from vlatool.models.base import Policy
from vlatool.workflows.verify import InspectConfig, inspect

FOLDER = Path(__file__).parents[2] / "examples/robot"
XYZ = "robot__actual__poses__right::panda__xyz"
NAMES = (XYZ,)
COMMAND = "robot__action__poses__right::panda__xyz"
HAND = "robot__action__grippers__right::panda_hand"


@pytest.fixture(scope="module", autouse=True)
def _on_path() -> Iterator[None]:
    names = ("robot", "world", "drive", "so101")
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def drive() -> Any:
    return importlib.import_module("drive")


@pytest.fixture
def robot() -> Any:
    return importlib.import_module("world").WorldRobot(NAMES)


class RisingPolicy(Policy):
    """Raises the hand by a millimeter per step."""

    sees = ObservationSpec({}, {XYZ: 3}, past=0, instruction=False)
    actions: ClassVar[Mapping[str, int]] = {COMMAND: 3, HAND: 1}
    fps, horizon = 10.0, 16

    def __init__(self) -> None:
        self.hold = threading.Event()  # calls wait for it
        self.hold.set()

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        assert self.hold.wait(20)
        rise = 0.001 * np.arange(1, self.horizon + 1)[:, None] * [0.0, 0.0, 1.0]
        chunks = [observation.fields[XYZ][-1] + rise for observation in observations]
        return {COMMAND: np.stack(chunks), HAND: np.full((len(chunks), self.horizon, 1), 0.05)}


class Moves:
    """Commands that never change."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def reset(self, seed: int | None = None, *, command: Any = None) -> None: ...

    def step(self, observation: Mapping[str, Any]) -> dict[str, Array]:
        return {COMMAND: np.full(3, self.value), HAND: np.full(1, 0.05)}


@pytest.mark.parametrize("rate", [10, 50])
def test_a_served_policy_moves_the_robot_at_the_rate_until_the_time_is_over(
    drive: Any, robot: Any, rate: int
) -> None:
    with (
        server_of(RisingPolicy()) as (url, _),
        vlatool.connect(url) as policy,
        vlatool.ControlLoop(policy, execute_steps=8, delay_steps=2) as loop,
    ):
        outcome = drive.drive(robot, loop, rate=rate, seconds=2)
    assert outcome.reason == "the time is over"
    assert outcome.steps > rate  # of 2 * rate, on a busy machine
    assert np.median(outcome.seconds) >= 0.95 / rate
    assert robot.observe()[XYZ][2] > 0.2
    assert robot.is_stopped


def test_a_late_policy_holds_the_robot_and_then_stops_it(drive: Any, robot: Any) -> None:
    policy = RisingPolicy()
    with (
        server_of(policy) as (url, _),
        vlatool.connect(url) as client,
        vlatool.ControlLoop(client, execute_steps=4, max_plan_s=9, max_age_s=9) as loop,
    ):
        outcome = drive.drive(
            robot,
            loop,
            rate=20,
            seconds=20,
            stop_after=0.4,
            on_step=lambda *step: policy.hold.clear(),
        )
        policy.hold.set()
    assert outcome.reason.startswith("no new command for 0.")
    assert (outcome.steps, robot.is_stopped) == (4, True)
    assert outcome.held > 2


def test_a_server_that_is_back_in_time_continues_and_one_that_is_gone_stops_the_robot(
    drive: Any, robot: Any
) -> None:
    with server_of(RisingPolicy()) as (url, stop):
        port = int(url.rpartition(":")[2])
        client = vlatool.connect(url)
        loop = vlatool.ControlLoop(client, execute_steps=2)
        steps: list[int] = []

        def count(*step: Any) -> None:
            steps.append(len(steps))
            if len(steps) == 4:
                stop()
            if len(steps) == 10:
                again[1]()

        again: list[Any] = []

        def restart() -> None:
            while len(steps) < 4:
                time.sleep(0.01)
            time.sleep(0.3)
            context = server_of(RisingPolicy(), port=port)
            again.extend([context, context.__enter__()[1]])

        thread = threading.Thread(target=restart)
        thread.start()
        outcome = drive.drive(robot, loop, rate=20, seconds=30, stop_after=3, on_step=count)
        thread.join()
        again[0].__exit__(None, None, None)
    assert outcome.reconnected == 1
    assert outcome.steps >= 10
    assert outcome.reason.startswith("no new command for 3.")
    assert robot.is_stopped


def test_a_command_that_is_not_finite_is_not_executed(drive: Any, robot: Any) -> None:
    with pytest.raises(ValueError, match="is not finite"):
        drive.drive(robot, Moves(np.nan), rate=50, seconds=1)
    assert robot.is_stopped


@pytest.mark.parametrize("error", [OSError("the camera is gone"), KeyboardInterrupt()])
def test_an_error_and_ctrl_c_stop_the_robot(drive: Any, robot: Any, error: BaseException) -> None:
    def fail() -> Any:
        raise error

    robot.observe = fail
    with pytest.raises(type(error)):
        drive.drive(robot, Moves(), rate=50, seconds=1)
    assert robot.is_stopped


@pytest.mark.parametrize(("failures", "is_stopped"), [(2, True), (3, False)])
def test_a_stop_that_fails_is_tried_again_and_reported(
    drive: Any, robot: Any, failures: int, is_stopped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stop = robot.stop
    left = [OSError("the bus is busy")] * failures

    def flaky() -> None:
        if left:
            raise left.pop()
        stop()

    robot.stop = flaky
    if is_stopped:
        drive.drive(robot, Moves(), rate=50, seconds=0.1)
    else:
        with pytest.raises(drive.RobotNotStoppedError, match="emergency stop"):
            drive.drive(robot, Moves(), rate=50, seconds=0.1)
    assert robot.is_stopped is is_stopped
    assert len(caplog.records) == failures


def test_a_drive_is_recorded_with_its_success(drive: Any, robot: Any, tmp_path: Path) -> None:
    recording = drive.Recording(str(tmp_path / "demos"), 20)
    keys = iter(["", "", "", "s"])
    outcome = drive.drive(robot, Moves(), rate=20, on_step=recording.add, key=lambda: next(keys))
    recording.end(outcome, "raise the hand")
    recording.recorder.close()
    assert (outcome.reason, outcome.steps, outcome.success) == ("you stopped it", 4, True)
    document = inspect(InspectConfig(location=str(tmp_path / "demos"))).document()
    assert (document["episodes"], document["frames"]) == (1, 4)


# SO-101


class Servos:
    """Simulated bus of six servos that reach each goal at once."""

    def __init__(self) -> None:
        self.words = {number: {42: 2048, 56: 2000 + number} for number in range(1, 7)}
        self.torque: set[int] = set()
        self.damaged = 0  # answers to damage
        self._answers = b""

    def reset_input_buffer(self) -> None:
        self._answers = b""

    def close(self) -> None: ...

    def read(self, size: int) -> bytes:
        data, self._answers = self._answers[:size], self._answers[size:]
        return data

    def write(self, frame: bytes) -> None:
        servo, length, instruction = frame[2:5]
        data = frame[5:-1]
        assert frame[:2] == b"\xff\xff"
        assert length == len(data) + 2
        assert frame[-1] == ~sum(frame[2:-1]) & 0xFF
        if instruction == 0x03 and data[0] == 40:
            (self.torque.add if data[1] else self.torque.discard)(servo)
            self._answer(servo, b"")
        elif instruction == 0x82:
            for number in data[2:]:
                self._answer(number, struct.pack("<H", self.words[number][data[0]]))
        elif instruction == 0x83:
            for place in range(2, len(data), 3):
                (value,) = struct.unpack("<H", data[place + 1 : place + 3])
                self.words[data[place]][data[0]] = value
                if self.torque:
                    self.words[data[place]][56] = value

    def _answer(self, servo: int, data: bytes) -> None:
        body = bytes([servo, len(data) + 2, 0]) + data
        check = ~sum(body) & 0xFF
        if self.damaged:
            self.damaged -= 1
            check ^= 1
        self._answers += b"\xff\xff" + body + bytes([check])


@pytest.fixture
def so101() -> Any:
    return importlib.import_module("so101")


def test_so101_begins_where_it_is_and_moves_in_degrees(so101: Any) -> None:
    servos = Servos()
    arm = so101.SO101(servos)
    arm.connect()
    assert [servos.words[number][42] for number in range(1, 7)] == list(range(2001, 2007))
    assert servos.torque == set(range(1, 7))
    arm.act({"action.joints": np.array([0.0, 45.0, -90.0, 500.0, 0.0, 0.0])})
    assert [servos.words[number][42] for number in range(1, 5)] == [2048, 2560, 1024, 4095]
    assert arm.observe()["state.joints"][:3].tolist() == [0.0, 45.0, -90.0]
    arm.stop()
    arm.release()
    assert servos.torque == set()


def test_so101_stops_although_an_answer_is_damaged(
    drive: Any, so101: Any, caplog: pytest.LogCaptureFixture
) -> None:
    servos = Servos()
    arm = so101.SO101(servos)

    class Still(Moves):
        def step(self, observation: Mapping[str, Any]) -> dict[str, Array]:
            servos.damaged = 7  # six of the next observation, one of the stop
            return {"action.joints": np.zeros(6)}

    with pytest.raises(so101.BusError, match="servo 1 is damaged"):
        drive.drive(arm, Still(), rate=50, seconds=1)
    assert len(caplog.records) >= 1
    assert servos.words[1][42] == servos.words[1][56]
