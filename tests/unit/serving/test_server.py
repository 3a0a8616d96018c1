"""`vlatool serve` and `vlatool.connect`: a policy over a socket."""

import asyncio
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import vlatool
from tests.builders.errors import fails
from tests.builders.forward_proxy import certificates
from tests.builders.serving import (
    BAD_NUMBER,
    ORIGIN,
    LookPolicy,
    local,
    look,
    raw_client,
    served,
    server_of,
)
from tests.builders.toy_policy import PushPolicy, register_line
from vlatool.cli.app import run
from vlatool.episode import Array, CameraView, Observation, ObservationSpec, channels_last
from vlatool.errors import VlatoolError
from vlatool.evaluation import policy_runner
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.controllers import KeyMap
from vlatool.serving.access import bound_socket, listen
from vlatool.serving.config import ServeConfig, ServeMap
from vlatool.serving.messages import CONTROL, pack, unpack
from vlatool.serving.server import PolicyServer, service_of
from vlatool.transforms.names import NameMap

RESTART, INTERNAL, TOO_BIG = 1001, 1011, 1009
MISSING = "environment.missing_dependency"
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def assert_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def http(url: str, path: str, key: str = "") -> tuple[int, str]:
    """Status and body of a request to the port of a server."""
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    request = urllib.request.Request(f"http://{urlsplit(url).netloc}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def message_of(number: float = 1.0, **changes: Any) -> bytes:
    return pack({**look(number), **changes})


# the same actions as in one process


@pytest.mark.parametrize("batch_size", [1, 4])
def test_client_acts_like_a_loaded_policy(batch_size: int) -> None:
    policy = local(PushPolicy())
    with served(batch_size=batch_size) as url, vlatool.connect(url) as client:
        assert (client.fields, client.actions) == (policy.fields, policy.actions)
        assert (client.cameras, client.fps, client.horizon) == ((), 10.0, 3)
        assert (client.names, client.checkpoint, client.weights) == (
            ["x"],
            policy.checkpoint.name,
            "ema",
        )
        for executed in (1, 3, 2):
            observation = {"x": [0.5 * executed]}
            assert_equal(
                client.act(observation, executed=executed),
                policy.act(observation, executed=executed),
            )
        client.observe({"x": 0.1})
        policy.observe({"x": 0.1})
        assert_equal(client.act({"x": 0.2}), policy.act({"x": 0.2}))
        for seed in (None, 7):
            client.reset(seed)
            policy.reset(seed)
            assert_equal(client.act({"x": 0.2}), policy.act({"x": 0.2}))


def test_a_plan_does_not_depend_on_who_shares_the_batch() -> None:
    policy = LookPolicy()
    expected = [local(LookPolicy()).act(look(number)) for number in range(8)]
    with served(policy, batch_size=3, batch_wait_ms=50) as url:

        def plan(number: int) -> Mapping[str, Any]:
            with vlatool.connect(url) as client:
                return client.act(look(number))

        with ThreadPoolExecutor(8) as pool:
            for first, second in zip(pool.map(plan, range(8)), expected, strict=True):
                assert_equal(first, second)
    assert set(policy.sizes) == {3}
    assert len(policy.sizes) - 2 < 8  # two to warm up; some requests shared a batch


def recorded_policy() -> LookPolicy:
    """Policy that was trained on recordings of 8 x 12 pixels, resized to 4 x 6."""
    policy = LookPolicy()
    view = CameraView((-1, 0), (4, 6), recorded=((8, 12), (4, 6)))
    policy.sees = replace(policy.sees, cameras={"front": view})
    return policy


def frame(height: int, width: int) -> dict[str, Any]:
    return {**look(1), "front": np.zeros((height, width, 3), np.uint8)}


def test_a_client_is_warned_once_of_images_that_are_resized(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with served(recorded_policy()) as url:
        with raw_client(url) as client:
            replies: list[Mapping[str, Any]] = []
            for size in (8, 12), (4, 6), (16, 24), (16, 24):
                client.send(pack(frame(*size)))
                replies.append(unpack(bytes(client.recv(10))))
        texts = [reply.get("warnings", []) for reply in replies]
        assert [len(each) for each in texts] == [0, 0, 1, 0]
        assert "24 x 16" in texts[2][0]
        with vlatool.connect(url) as robot:
            robot.act(frame(16, 24))
    assert any("24 x 16" in record.message for record in caplog.records if "client" in record.name)


@pytest.mark.parametrize("fit", [None, "squash", "pad", "crop"])
def test_another_aspect_ratio_is_refused_unless_the_map_says_how(
    fit: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text("{}" if fit is None else f"resize: {{front: {fit}}}\n")
    with served(recorded_policy(), map=str(file)) as url, vlatool.connect(url) as client:
        if fit is not None:
            assert client.act(frame(12, 12))["move"].shape == (5, 2)
            return
        with pytest.raises(VlatoolError) as failed:
            client.act(frame(12, 12))
    assert failed.value.code == "data.mismatch"
    assert "12 x 12" in failed.value.message
    assert "12 x 8 or 6 x 4" in failed.value.message


def test_an_allowed_difference_is_taken() -> None:
    options = {"allow": ["cameras.front.size"]}
    with served(recorded_policy(), **options) as url, vlatool.connect(url) as client:
        assert client.act(frame(12, 12))["move"].shape == (5, 2)


def test_keys_of_a_client_are_mapped_as_in_rollouts(tmp_path: Path) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(
        "cameras: {front: observation/image}\nflipped_cameras: [front]\ninstruction_key: prompt\n"
        "fields: {pose: {key: state, start: 1, stop: 3, scale: 2.0}}\n"
        "action: [{field: grip, scale: -1.0}, {field: move}]\n"
    )
    seen = look(4.0)
    sent = {"observation/image": seen["front"][::-1], "state": [9, 2.0, 0.5, 9], "prompt": "sing"}
    chunk = local(LookPolicy()).act(seen)
    with served(LookPolicy(), map=str(file)) as url, vlatool.connect(url) as client:
        assert client.names == ["observation/image", "state", "prompt"]
        actions = client.act({**sent, "unused": 1})["actions"]
        np.testing.assert_array_equal(actions, np.hstack([-chunk["grip"], chunk["move"]]))
        with fails("data.bad_request"):
            client.act({"state": sent["state"]})
        client.reset()
        with fails("data.mismatch"):
            client.act({**sent, "state": "four"})


def test_keys_of_a_client_are_mapped_one_by_one() -> None:
    seen = look(4.0)
    names = ["cameras.*=images.*", "fields.pose=state[1:3]"]
    sent = {**seen, "images": {"front": seen["front"]}, "state": [9, *seen["pose"], 9]}
    chunk = local(LookPolicy()).act(seen)
    with (
        served(LookPolicy(), map=ServeMap.from_texts(names)) as url,
        vlatool.connect(url) as client,
    ):
        assert client.names[:2] == ["images.front", "state"]
        sent = {name: value for name, value in sent.items() if name not in ("front", "pose")}
        actions = client.act(sent)["actions"]
    np.testing.assert_array_equal(actions, np.hstack([chunk[name] for name in chunk]))


class RisePolicy(PushPolicy):
    """Moves a hand up by 5 cm per step."""

    sees = ObservationSpec(fields={"hand__xyz": 3}, instruction=False)
    actions: ClassVar[Mapping[str, int]] = {"target__xyz": 3}

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        steps = np.outer(np.arange(1, self.horizon + 1), [0, 0, 0.05])
        return {"target__xyz": np.stack([row.fields["hand__xyz"] + steps for row in observations])}


def test_a_robot_is_answered_in_its_own_convention(tmp_path: Path) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(
        "pose_groups:\n"
        "- {name: hand, position_key: 'tcp[0:3]', rotation_key: 'tcp[3:7]',\n"
        "   rotation: quaternion_wxyz, scale: 1000}\n"
        "- {name: target, position_key: 'action[0:3]', rotation_key: 'action[3:6]',\n"
        "   rotation: axis_angle, relation: delta, frame: tool, scale: 20, reference: hand}\n"
        "action: [{field: target}]\n"
    )
    with served(RisePolicy(), map=str(file)) as url, vlatool.connect(url) as client:
        assert client.names == ["tcp"]
        assert client.pose_groups[1]["frame"] == "tool"
        # Up is against the z axis of a hand that points down; each step is from the one before.
        for height in (300.0, 400.0):
            actions = client.act({"tcp": [100.0, 200, height, 0, 1, 0, 0]})["actions"]
            np.testing.assert_allclose(actions, [[0, 0, -1, 0, 0, 0]] * 3, atol=1e-12)


def test_a_key_for_a_name_that_the_policy_lacks_is_an_error() -> None:
    names = NameMap(cameras={"wrist": "image"})
    with pytest.raises(VlatoolError, match="wrist=image") as caught:
        KeyMap(LookPolicy(), RolloutConfig(map=names))
    assert caught.value.code == "data.unknown_field"
    assert "front" in caught.value.message


# the protocol of openpi


@pytest.mark.parametrize("declared", ["", "channels_first_cameras: [front]\n"])
def test_images_with_channels_first_are_declared_or_recognized(
    declared: str, tmp_path: Path
) -> None:
    (tmp_path / "robot.yaml").write_text(
        f"{declared}cameras: {{front: images.cam}}\nflipped_cameras: [front]\n"
        "instruction_key: prompt\nfields: {pose: {key: state}}\n"
        "action: [{field: move}, {field: grip}]\n"
    )
    seen = look(4.0)
    image = seen["front"][::-1].transpose(2, 0, 1)
    sent = {"images": {"cam": image}, "state": seen["pose"], "prompt": "sing"}
    chunk = local(LookPolicy()).act(seen)
    with served(LookPolicy(), map=str(tmp_path / "robot.yaml")) as url:
        with vlatool.connect(url) as client:
            actions = client.act(sent)["actions"]
        np.testing.assert_array_equal(actions, np.hstack([chunk["move"], chunk["grip"]]))
    assert_equal(
        local(LookPolicy()).act({**seen, "front": seen["front"].transpose(2, 0, 1)}), chunk
    )


def test_an_image_whose_first_and_last_axis_are_three_has_its_channels_last() -> None:
    square = np.random.default_rng(0).integers(0, 256, (3, 6, 3), np.uint8)
    np.testing.assert_array_equal(channels_last(square), square)
    np.testing.assert_array_equal(channels_last(square, is_first=True), square.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("rule", "message", "flags"),
    [
        ({}, {"reset": True}, {}),
        ({}, {CONTROL: {"reset": True}}, {}),
        ({"episode_key": "is_first"}, None, {"is_first": np.array([True])}),
        ({"episode_idle_s": 0.3}, None, {}),
    ],
    ids=["message", "control", "flag", "idle"],
)
def test_a_client_that_keeps_its_connection_starts_an_episode_by_a_rule_of_the_metadata(
    rule: Mapping[str, Any], message: Any, flags: Mapping[str, Any]
) -> None:
    with served(LookPolicy(), **rule) as url, connect(url, compression=None) as client:

        def reply(request: Any) -> dict[str, Any]:
            client.send(pack(request))
            return unpack(cast(bytes, client.recv(10)))

        metadata = unpack(cast(bytes, client.recv(10)))
        assert metadata["new_episode"] == {
            "request": {"reset": True},
            "idle_s": rule.get("episode_idle_s"),
            "key": rule.get("episode_key"),
        }
        no_flags = dict.fromkeys(flags, False)
        first = reply({**look(1), **flags})["actions"]
        second = reply({**look(1), **no_flags})["actions"]
        assert not np.array_equal(first, second)
        if message is not None:
            assert "actions" not in reply(message)
        elif not flags:
            time.sleep(0.5)
        np.testing.assert_array_equal(reply({**look(1), **flags})["actions"], first)
        np.testing.assert_array_equal(reply({**look(1), **no_flags})["actions"], second)


def test_a_client_of_openpi_gets_metadata_then_actions_with_their_timing() -> None:
    with served(LookPolicy()) as url, raw_client(url) as client:
        replies: list[dict[str, Any]] = []
        for number in (1, 2):
            client.send(message_of(number))
            replies.append(unpack(client.recv(10)))
    assert [set(reply) for reply in replies] == [{"actions", "server_timing"}] * 2
    assert replies[0]["actions"].shape == (5, 3)
    assert [sorted(reply["server_timing"]) for reply in replies] == [
        ["infer_ms"],
        ["infer_ms", "prev_total_ms"],
    ]


def array_map(**changes: Any) -> dict[bytes, Any]:
    value = {b"__ndarray__": True, b"data": bytes(72), b"dtype": "|u1", b"shape": [4, 6, 3]}
    return {**value, **{name.encode(): changed for name, changed in changes.items()}}


def with_image(**changes: Any) -> bytes:
    return msgpack.packb({"front": array_map(**changes), "pose": [0, 0], "instruction": ""})


def nested(*lengths: int) -> bytes:
    """Lists of lists of these lengths; the innermost are empty."""
    data = b"\x90"
    for length in reversed(lengths):
        data = b"\xdc" + length.to_bytes(2) + data * length
    return data


BAD_REQUESTS: Mapping[str, tuple[str | bytes, str]] = {
    "text": ("hello", "data.broken"),
    "no msgpack": (b"\xc1\x00", "data.broken"),
    "empty": (b"", "data.broken"),
    "half a map": (message_of()[:-5], "data.broken"),
    "a list": (msgpack.packb([1, 2]), "data.broken"),
    "deep": (b"\x91" * 5000 + b"\x90", "data.broken"),
    "deep list in a map": (b"\x81\xa1a" + b"\x91" * 300 + b"\x90", "data.broken"),
    "lists": (b"\x81\xa1a" + nested(1000, 30), "data.broken"),
    "lists declared": (b"\x81\xa1a" + b"\xdc\xff\xff" * 500, "data.broken"),
    "one key again and again": (b"\xde\x03\xe8" + b"\xa1a\xc0" * 1000, "data.broken"),
    "objects": (with_image(dtype="|O"), "data.broken"),
    "void": (with_image(dtype="|V1"), "data.broken"),
    "complex": (with_image(dtype="<c8"), "data.broken"),
    "times": (with_image(dtype="<M8[s]"), "data.broken"),
    "no type": (with_image(dtype="nonsense"), "data.broken"),
    "no bytes per value": (with_image(dtype="<U0", shape=[10**12], data=b""), "data.broken"),
    "too short": (with_image(data=bytes(71)), "data.broken"),
    "huge": (with_image(shape=[2**40, 2**40, 3]), "data.broken"),
    "huge and empty": (with_image(shape=[0, 2**62], data=b""), "data.broken"),
    "negative": (with_image(shape=[-4, -6, 3]), "data.broken"),
    "65 axes": (with_image(shape=[1] * 65, data=b"1"), "data.broken"),
    "old arrays": (
        msgpack.packb({**look(1), "front": {"nd": True}}, default=list),
        "data.bad_request",
    ),
    "number of bytes": (
        msgpack.packb({"pose": {b"__npgeneric__": True, b"dtype": "S1", b"data": 800_000_000}}),
        "data.broken",
    ),
    "unknown": (message_of(side=np.zeros(2)), "data.bad_request"),
    "control of a later version": (message_of(**{CONTROL: {"pause": True}}), "data.broken"),
    "control of another type": (message_of(**{CONTROL: {"reset": 1}}), "data.broken"),
    "negative seed": (message_of(**{CONTROL: {"reset": True, "seed": -1}}), "usage.bad_value"),
    "no step": (message_of(**{CONTROL: {"executed": 0}}), "usage.bad_value"),
    "model": (message_of(BAD_NUMBER), "environment.policy_failed"),
    "action over float32": (message_of(pose=np.array([1e308, 0])), "data.not_finite"),
    "action not finite": (message_of(pose=np.array([1e308, 1e308])), "data.not_finite"),
}


@pytest.fixture(scope="module")
def url() -> Any:
    with served(LookPolicy()) as address:
        yield address


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_gets_its_error_as_text_and_1011(url: str, name: str) -> None:
    data, code = BAD_REQUESTS[name]
    with raw_client(url) as client:
        client.send(data)
        text = client.recv(10)
        assert isinstance(text, str)
        assert text.splitlines()[-1] == f"code: {code}"
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == INTERNAL
    with vlatool.connect(url) as client:
        assert client.act(look(1))["grip"].shape == (5, 1)


@pytest.mark.parametrize(
    "data",
    [
        with_image(dtype="i4," * 300_000),
        with_image(shape=[2**62] * 10_000),
        msgpack.packb({"a" * 1_000_000: 1}),
        nested(65_535, 442),
        b"\x81\xa1a\xdc\xff\xff" + nested(4, 4, 27) * 65_535,
        b"\xdd" + (20_000).to_bytes(4) + (b"\xde\x01\x00" + b"\xa1a\xc0" * 256) * 20_000,
    ],
    ids=["dtype", "shape", "name", "lists", "short lists", "maps"],
)
def test_a_message_with_long_parts_is_rejected_before_work_that_holds_up_others(
    data: bytes,
) -> None:
    started = time.process_time()
    with pytest.raises(VlatoolError) as failed:
        unpack(data)
    assert time.process_time() - started < 0.5
    assert failed.value.code == "data.broken"
    assert len(failed.value.message) < 1000


def test_the_client_raises_the_error_of_the_server_and_connects_again_at_reset(url: str) -> None:
    with vlatool.connect(url) as client:
        with fails("data.mismatch", 3) as failed:
            client.act({**look(1), "pose": [1.0]})
        assert failed.value.hint
        with fails("environment.server_unreachable", 6):
            client.act(look(1))
        client.reset()
        assert client.act(look(1))


def test_after_a_reset_the_client_has_the_policy_that_the_server_has_now() -> None:
    with server_of() as (url, stop):
        client = vlatool.connect(url)
        stop()
    with client, served(LookPolicy(), port=urlsplit(url).port):
        with fails("environment.server_unreachable"):
            client.act({"x": 1.0})
        client.reset()
        assert (client.horizon, client.actions) == (5, {"move": 2, "grip": 1})
        assert_equal(client.act(look(1)), local(LookPolicy()).act(look(1)))


def test_after_an_interrupted_request_no_other_one_gets_its_reply() -> None:
    policy = LookPolicy()
    with served(policy) as url, vlatool.connect(url) as client:
        policy.hold.clear()
        policy.called.clear()

        def interrupt() -> None:
            assert policy.called.wait(20)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            client.act(look(1))
        policy.hold.set()
        with fails("environment.server_unreachable"):
            client.act(look(2))
        client.reset()
        assert_equal(client.act(look(2)), local(LookPolicy()).act(look(2)))


@pytest.mark.parametrize("value", [object(), {"a": object()}, [[1], [1, 2]], 1j])
def test_values_that_cannot_be_sent_are_errors_of_the_client(url: str, value: Any) -> None:
    with vlatool.connect(url) as client, pytest.raises(VlatoolError) as failed:
        client.act({**look(1), "pose": value})
    assert failed.value.code == "data.missing"


# limits


def test_images_of_another_type_are_named_before_the_size_of_the_request() -> None:
    with served(max_request_mb=0.001) as url, vlatool.connect(url) as client:
        for observation in ({"x": np.zeros((64, 64, 3))}, {"images": {"x": np.zeros((64, 64, 3))}}):
            with fails("data.bad_request", 3) as refused:
                client.act(observation)
            assert refused.value.details["camera"] == "x"


def test_a_request_is_at_most_as_large_as_the_observation_needs() -> None:
    policy = LookPolicy()
    policy.sees = replace(policy.sees, cameras={"front": CameraView((-1, 0), (480, 640))})
    largest = int(1.5 * (480 * 640 * 3 + 2 * 8)) + 64_000
    with served(policy) as url:
        with raw_client(url) as client:
            client.send(bytes(largest + 1))
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == TOO_BIG
        with vlatool.connect(url) as robot:
            with fails("data.bad_request") as failed:
                robot.act({**look(1), "front": np.zeros((720, 1280, 3), np.uint8)})
            assert f"{largest:,}" in failed.value.message
            assert robot.act({**look(1), "front": np.zeros((480, 640, 3), np.uint8)})


def test_a_client_too_many_is_rejected() -> None:
    with served(max_clients=1) as url:
        with vlatool.connect(url) as first:
            with fails("environment.server_unreachable"):
                vlatool.connect(url)
            assert first.act({"x": 1.0})
        deadline = time.monotonic() + 10
        while "vlatool_clients 0" not in http(url, "/metrics")[1]:
            assert time.monotonic() < deadline
        vlatool.connect(url).close()


def test_a_client_over_its_rate_waits() -> None:
    with served(max_rate=20) as url, vlatool.connect(url) as client:
        started = time.monotonic()
        for _ in range(5):
            client.act({"x": 1.0})
        assert time.monotonic() - started >= 4 / 20


def test_a_slow_policy_gets_a_timeout() -> None:
    policy = LookPolicy()
    with served(policy, request_timeout_s=0.2) as url, vlatool.connect(url) as client:
        policy.hold.clear()
        with pytest.raises(VlatoolError) as failed:
            client.act(look(1))
        policy.hold.set()
        client.reset()
        assert client.act(look(1))
    assert failed.value.code == "environment.server_unreachable"


# clients that fail or vanish


@pytest.mark.parametrize(
    ("request_", "message", "code"),
    [
        ({"pose": np.array([1e308, 1e308])}, "not finite: move, grip", "data.not_finite"),
        (look(BAD_NUMBER), "RuntimeError the wrong number", "environment.policy_failed"),
    ],
)
def test_a_request_that_fails_does_not_fail_the_others_of_its_batch(
    request_: Mapping[str, Any], message: str, code: str
) -> None:
    with served(LookPolicy(), batch_size=2, batch_wait_ms=1000) as url:
        with (
            vlatool.connect(url) as good,
            vlatool.connect(url) as bad,
            ThreadPoolExecutor(1) as pool,
        ):
            answer = pool.submit(good.act, look(1))
            with pytest.raises(VlatoolError, match=message) as failed:
                bad.act({**look(1), **request_})
            assert_equal(answer.result(), local(LookPolicy()).act(look(1)))
        metrics = http(url, "/metrics")[1]
    assert failed.value.code == code
    assert f'vlatool_errors_total{{code="{code}"}} 1' in metrics
    assert "vlatool_requests_total 1" in metrics


def test_clients_that_vanish_leave_the_others_alone() -> None:
    policy = LookPolicy()
    with served(policy) as url, vlatool.connect(url) as client:
        policy.hold.clear()
        policy.called.clear()
        with ExitStack() as leaving:
            gone = [leaving.enter_context(raw_client(url)) for _ in range(3)]
            for connection in gone:
                connection.send(message_of())
            assert policy.called.wait(10)
            for connection in gone:
                connection.socket.shutdown(socket.SHUT_RDWR)
            before = len(policy.sizes)
            policy.hold.set()
            assert client.act(look(1))
    assert len(policy.sizes) <= before + 3


def test_half_a_handshake_half_a_frame_and_another_version_leave_the_others_alone(
    url: str,
) -> None:
    address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
    start = b"GET / HTTP/1.1\r\nHost: x\r\nUpgr"
    version = b"ade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n"
    with socket.create_connection(address) as half:
        half.sendall(start)
        with raw_client(url) as client:
            client.socket.sendall(b"\x82\xfe\x10\x00half")
            with vlatool.connect(url) as other:
                assert other.act(look(1))
            client.socket.close()
        half.sendall(version + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        assert half.recv(100).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "frame",
    [b"\x89\x80", b"\x8a\x80", b"\x00\x80"],
    ids=["pings", "pongs", "empty pieces of a message"],
)
def test_a_client_that_sends_frames_without_content_is_disconnected(url: str, frame: bytes) -> None:
    with raw_client(url) as client:
        client.socket.sendall(b"\x02\x80" + bytes(4) + (frame + bytes(4)) * 1000)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)


def test_a_client_may_ping_and_send_a_message_in_pieces(url: str) -> None:
    with raw_client(url) as client:
        for _ in range(9):
            client.ping().wait(10)
        data = message_of()
        client.send([data[:5], data[5:9], data[9:]])
        assert "actions" in unpack(client.recv(timeout=10))


def test_a_client_that_leaves_amid_its_pings_leaves_no_lines_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        with raw_client(url) as client:
            client.socket.sendall((b"\x89\x80" + bytes(4)) * 20)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
    with vlatool.connect(url) as other:
        assert other.act(look(1))
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# access


def test_only_a_client_with_the_key_is_served(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("open sesame\n")
    with served(host="0.0.0.0", key_file=str(tmp_path / "key")) as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        for wrong in (None, "Open sesame", "open sesame2"):
            with fails("environment.credentials"):
                vlatool.connect(url, api_key=wrong)
        with fails("usage.bad_value") as failed:
            vlatool.connect(url, api_key="sesame\n")
        assert "sesame" not in str(failed.value)
        with vlatool.connect(url, api_key="open sesame") as client:
            assert client.act({"x": 1.0})
        assert http(url, "/healthz") == (200, "OK\n")
        assert http(url, "/metrics")[0] == 401
        assert 'vlatool_rejections_total{code="key"} 4' in http(url, "/metrics", "open sesame")[1]


def test_tls_is_by_certificate_files(tmp_path: Path) -> None:
    authority, chain = map(str, certificates(tmp_path, "localhost"))
    with served(certificate=chain, private_key=chain) as url:
        url = url.replace("127.0.0.1", "localhost")
        with vlatool.connect(url, certificate=authority) as client:
            assert client.act({"x": 1.0})
        for address in (url, url.replace("wss", "ws")):
            with fails("environment.server_unreachable"):
                vlatool.connect(address)


@pytest.mark.parametrize("address", ["http://localhost:1", "localhost", "ws://", ""])
def test_an_address_of_no_server_is_a_usage_error(address: str) -> None:
    with fails("usage.bad_value"):
        vlatool.connect(address)


def test_a_server_of_another_program_is_recognized() -> None:
    from websockets.sync.server import serve

    with serve(lambda client: client.send(msgpack.packb({"a": 1})), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(VlatoolError) as failed:
            vlatool.connect(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        server.shutdown()
        thread.join()
    assert failed.value.code == "environment.server_unreachable"


# start and end


def test_the_policy_has_warmed_up_before_the_first_client_connects() -> None:
    policy = LookPolicy()
    with served(policy, batch_size=4):
        assert policy.sizes == [4, 4]


def test_a_server_that_is_stopped_while_it_warms_up_never_listens() -> None:
    policy = LookPolicy()
    policy.hold.clear()
    server = PolicyServer(service_of(ServeConfig(checkpoint="toy"), policy, ORIGIN))
    notes: list[str] = []
    with bound_socket("127.0.0.1", 0) as bound, ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: asyncio.run(server.run(bound, lambda: notes.append("ready"))))
        assert policy.called.wait(10)
        server.stop()
        policy.hold.set()
        done.result(20)
    assert notes == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "toy", "--port", "0"], "this command keeps nothing of an unfinished run"),
        (["predict", "toy", "data"], "this command keeps nothing of an unfinished run"),
        (["eval", "rollout", "toy", "--env", "toys/Line-v0"], "finished work is kept"),
    ],
    ids=["serve", "predict", "eval rollout"],
)
def test_an_interrupted_command_says_what_is_kept(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy_runner, "open_policy", interrupted)
    register_line()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vlatool", *words])
    assert run([*words, "--json"]) == 130
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"] == f"interrupted; {message}"
    assert f"vlatool {' '.join(words)}" in error["hint"]
    assert ("resume" in error["hint"]) == (words[0] == "eval")


def test_a_stopped_server_answers_what_it_computes() -> None:
    policy = LookPolicy()
    with (
        server_of(policy) as (url, stop),
        ThreadPoolExecutor(1) as pool,
        vlatool.connect(url) as busy,
        raw_client(url) as idle,
    ):
        policy.hold.clear()
        policy.called.clear()
        answer = pool.submit(busy.act, look(1))
        assert policy.called.wait(10)
        stop()
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == RESTART
        policy.hold.set()
        assert answer.result()["grip"].shape == (5, 1)


BAD_STARTS: Mapping[str, tuple[str, str, int]] = {
    "no checkpoint": ("", "usage.missing_key", 2),
    "absent checkpoint": ("absent", "data.no_source", 3),
    "port in use": ("absent --port PORT", "usage.bad_value", 2),
    "unknown host": ("absent --host no_such_host", "usage.bad_value", 2),
    "host of another": ("absent --host 192.0.2.1 --key-file key", "usage.bad_value", 2),
    "no key": ("absent --host 0.0.0.0", "usage.bad_value", 2),
    "absent key": ("absent --key-file absent", "usage.missing_file", 2),
    "empty key": ("absent --key-file empty", "usage.bad_value", 2),
    "pipe as key": ("absent --key-file pipe", "usage.missing_file", 2),
    "no certificate": ("absent --certificate key", "usage.bad_value", 2),
    "key without certificate": ("absent --private-key key", "usage.bad_value", 2),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_bad_options_are_named_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("secret")
    (tmp_path / "empty").write_text("\n")
    os.mkfifo(tmp_path / "pipe")
    arguments, code, exit_code = BAD_STARTS[name]
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = arguments.replace("PORT", str(other.getsockname()[1])).split()
        assert run(["serve", "--json", "--port", "0", *words]) == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_of_two_servers_that_start_at_one_port_the_second_names_it() -> None:
    with bound_socket("127.0.0.1", 0) as first, bound_socket(*first.getsockname()) as second:
        listen(first)
        config = ServeConfig(checkpoint="toy")
        server = PolicyServer(service_of(config, PushPolicy(), ORIGIN))
        with pytest.raises(VlatoolError) as failed:
            asyncio.run(server.run(second, lambda: None))
    assert failed.value.code == "usage.bad_value"


@pytest.mark.parametrize("package", ["websockets", "msgpack"])
def test_without_the_extra_server_and_client_name_it(
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Metadata as installed, which those of a development environment may be older than.
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    lines = [
        f'Requires-Dist: {line}; extra == "{extra}"'
        for extra, requirements in extras.items()
        for line in requirements
    ]
    folder = tmp_path / "vlatool-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("\n".join(["Name: vlatool", "Version: 9", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("vlatool.serving."):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(sys.modules["vlatool.serving"], name.rpartition(".")[2])
    assert run(["serve", "somewhere", "--json"]) == 6
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["hint"]) == (MISSING, "pip install 'vlatool[serve]'")
    with pytest.raises(VlatoolError) as caught:
        _ = vlatool.connect
    assert (caught.value.code, caught.value.details["extra"]) == (MISSING, "serve")


def test_images_of_full_size_are_answered_if_requests_may_be_as_large() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    observation = {**look(1), "front": image}
    with served(LookPolicy(), max_request_mb=8) as url, vlatool.connect(url) as client:
        expected = local(LookPolicy()).act(observation)
        np.testing.assert_array_equal(client.act(observation)["move"], expected["move"])
        with fails("data.bad_request"):
            client.act({**observation, "pose": np.zeros(1_000_000)})


def test_a_client_waits_for_a_server_that_starts_later() -> None:
    with bound_socket("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
    started: list[Any] = []

    def start() -> None:
        server = served(LookPolicy(), port=port)
        started.append((server, server.__enter__()))

    timer = threading.Timer(0.7, start)
    timer.start()
    try:
        with vlatool.connect(f"ws://127.0.0.1:{port}", wait=30) as client:
            assert client.horizon == LookPolicy.horizon
    finally:
        timer.join()
        for server, _ in started:
            server.__exit__(None, None, None)
