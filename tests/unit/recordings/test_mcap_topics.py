"""Topics of bags: transforms, joints of several publishers, texts, and the role of each topic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import hdf5
from tests.builders import mcap as build
from vlatool.episode import Episode, StoredPart
from vlatool.errors import DataError
from vlatool.recordings.mcap.reader import McapConfig, McapReader


def reader_of(path: Path, mapping: str = "", **options: Any) -> McapReader:
    if mapping:
        (path.parent / "mapping.yaml").write_text(mapping)
        options["mapping"] = str(path.parent / "mapping.yaml")
    return McapReader(McapConfig(**{"fps": 10, **options}))


def read(path: Path, mapping: str = "", **options: Any) -> Episode:
    reader = reader_of(path, mapping, **options)
    return reader.read(next(iter(reader.discover([path]))))


def codes(episode: Episode) -> list[str]:
    return [finding.code for finding in episode.findings]


def parts(episode: Episode) -> dict[str, StoredPart]:
    return {part.path: part for part in episode.parts}


# Transforms


def tf_bag(folder: Path, frames: Sequence[str] = ("base__tool", "map__odom")) -> Path:
    """Transforms of `frames` in messages of their own; those of the first one move."""
    sent: list[build.Sent] = []
    for step in range(5):
        for number, frame in enumerate(frames):
            place = (float(step), 0.0, 0.0) if number == 0 else (100.0, 200.0, 300.0)
            time = step / 10 + number / 100
            sent.append(("/tf", time, build.transforms(time, **{frame: place})))
        sent.append(("/a", step / 10, build.numbers(step)))
    return build.bag(folder / "a.mcap", sent)


@pytest.mark.parametrize("frame", ["tool", "base>tool", "/tool"])
def test_a_transform_is_chosen_by_its_child_frame(frame: str, tmp_path: Path) -> None:
    path = tf_bag(tmp_path)
    episode = read(path, f"fields: {{tip: '/tf/transforms[{frame}].transform.translation'}}")
    expected = [[step, 0, 0] for step in range(5)]
    assert episode.lowdim["tip"].tolist() == expected
    assert episode.dimension_names["tip"] == ("x", "y", "z")


def test_a_survey_finds_a_transform_that_is_not_in_the_first_message(tmp_path: Path) -> None:
    path = tf_bag(tmp_path)
    reader = reader_of(path, "fields: {odom: '/tf/transforms[odom].transform.translation'}")
    survey = reader.survey(list(reader.discover([path])))
    assert survey.fields["odom"].names == ("x", "y", "z")


def test_a_number_that_leads_to_different_frames_is_an_error(tmp_path: Path) -> None:
    path = tf_bag(tmp_path)
    with pytest.raises(DataError, match="different frames: base>tool, map>odom") as caught:
        read(path, "fields: {tip: /tf/transforms.0.transform.translation}")
    assert caught.value.code == "data.broken"
    assert caught.value.hint.endswith("/tf/transforms[tool].transform.translation")


def test_a_proposal_shows_how_to_choose_a_frame(tmp_path: Path) -> None:
    text = McapReader.propose(tf_bag(tmp_path)) or ""
    assert "# left out: /tf: transforms base>tool" in text
    assert "/tf/transforms[CHILD].transform" in text


def test_a_number_that_leads_to_one_frame_is_read(tmp_path: Path) -> None:
    path = tf_bag(tmp_path, ("base__tool",))
    episode = read(path, "fields: {tip: /tf/transforms.0.transform.translation}")
    assert episode.lowdim["tip"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_child_of_two_parents_is_an_error_until_the_parent_is_named(tmp_path: Path) -> None:
    path = tf_bag(tmp_path, ("base__tool", "map__tool"))
    with pytest.raises(DataError, match="base>tool, map>tool") as caught:
        read(path, "fields: {tip: '/tf/transforms[tool].transform.translation'}")
    assert "/tf/transforms[base>tool].transform" in caught.value.hint
    episode = read(path, "fields: {tip: '/tf/transforms[base>tool].transform.translation'}")
    assert episode.lowdim["tip"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_frame_that_is_not_there_is_an_error_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the bag has base>tool, map>odom"):
        read(tf_bag(tmp_path), "fields: {tip: '/tf/transforms[hand].transform.translation'}")


def test_transforms_of_a_topic_of_their_own_may_not_be_mixed(tmp_path: Path) -> None:
    sent: list[build.Sent] = []
    for step in range(4):
        frame = "base__tool" if step % 2 == 0 else "base__cup"
        message = build.transforms(step / 10, **{frame: (float(step), 0.0, 0.0)})
        sent.append(("/pose", step / 10, message.transforms[0]))
    path = build.bag(tmp_path / "a.mcap", sent)
    with pytest.raises(DataError, match="base>tool, base>cup") as caught:
        read(path, "fields: {tip: /pose/transform.translation}")
    reference = caught.value.hint.rpartition(" ")[2]
    assert reference == "/pose/[tool].transform.translation"
    episode = read(path, f"fields: {{tip: '{reference}'}}")
    assert episode.lowdim["tip"][:, 0].tolist() == [0, 0, 2]


# Joints


def arms(count: int = 5) -> list[build.Sent]:
    """Left and right arm in turns on one topic, the right one half an interval later."""
    sent: list[build.Sent] = []
    for step in range(count):
        left, right = step / 10, step / 10 + 0.05
        sent.append(("/joint_states", left, build.joints(left, l1=step, l2=step + 0.5)))
        sent.append(("/joint_states", right, build.joints(right, r1=-step)))
    return sent


def test_joints_of_several_publishers_are_joined_by_their_names(tmp_path: Path) -> None:
    episode = read(build.bag(tmp_path / "a.mcap", arms()), fps=20)
    assert episode.dimension_names["joint_states.position"] == ("l1", "l2", "r1")
    rows = episode.lowdim["joint_states.position"].tolist()
    assert rows[:3] == [[0, 0.5, 0], [1, 1.5, 0], [1, 1.5, -1]]
    messages = {finding.code: finding.message for finding in episode.findings}
    assert "/joint_states: 9 messages" in messages["mcap.joined"]
    assert "/joint_states: 1 messages" in messages["mcap.skipped"]


def test_a_survey_has_the_joints_of_all_publishers(tmp_path: Path) -> None:
    path = build.bag(tmp_path / "a.mcap", arms())
    reader = reader_of(path)
    survey = reader.survey(list(reader.discover([path])))
    assert survey.fields["joint_states.position"].names == ("l1", "l2", "r1")


def test_a_mapping_selects_joints_of_one_publisher(tmp_path: Path) -> None:
    text = "{fields: {q: /joint_states/position}, joints: {q: [l2, l1]}}"
    episode = read(build.bag(tmp_path / "a.mcap", arms()), text)
    assert episode.lowdim["q"].tolist() == [[n + 0.5, n] for n in range(5)]
    assert "mcap.joined" not in codes(episode)


def test_a_joint_that_stops_is_too_old_although_others_go_on(tmp_path: Path) -> None:
    sent = arms(2)
    for step in range(2, 9):
        sent.append(("/joint_states", step / 10, build.joints(step / 10, l1=step, l2=step)))
    path = build.bag(tmp_path / "a.mcap", sent)
    with pytest.raises(DataError, match="s old"):
        read(path, max_age_s=0.3)


def test_joints_that_no_message_has_are_named(tmp_path: Path) -> None:
    text = "{fields: {q: /joint_states/position}, joints: {q: [l1, elbow]}}"
    with pytest.raises(DataError, match="these joints have no value: elbow"):
        read(build.bag(tmp_path / "a.mcap", arms()), text)


def test_joints_that_come_later_are_left_out_by_name(tmp_path: Path) -> None:
    sent: list[build.Sent] = []
    for step in range(15):
        sent.append(("/joint_states", step / 10, build.joints(step / 10, a=step)))
    sent.append(("/joint_states", 1.3, build.joints(1.3, grip=1)))
    path = build.bag(tmp_path / "a.mcap", sorted(sent, key=lambda item: item[1]))
    episode = read(path)
    assert episode.dimension_names["joint_states.position"] == ("a",)
    messages = {finding.code: finding.message for finding in episode.findings}
    assert messages["mcap.late_joints"].endswith("joint_states.velocity: grip")
    text = "{fields: {q: /joint_states/position}, joints: {q: [a, grip]}}"
    assert read(path, text).lowdim["q"].tolist() == [[13, 1], [14, 1]]


def test_messages_without_joints_are_passed_over(tmp_path: Path) -> None:
    sent = [("/joint_states", 0.02, build.joints(0.02)), *arms()]
    episode = read(build.bag(tmp_path / "a.mcap", sent), fps=20)
    assert episode.lowdim["joint_states.position"].tolist()[0] == [0, 0.5, 0]


def test_values_that_only_one_publisher_has_are_a_field_of_its_joints(tmp_path: Path) -> None:
    sent = arms()
    for _, _, message in sent[::2]:
        message.effort = message.position * 2
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert episode.dimension_names["joint_states.effort"] == ("l1", "l2")
    assert episode.lowdim["joint_states.effort"][2].tolist() == [4, 5]


# Numbers that are none


def nan_bag(path: Path) -> Path:
    sent = build.standard()
    for topic, _, message in sent:
        if topic == "/joint_states":
            message.effort = np.full(2, np.nan)
    return build.bag(path, sent)


def test_a_field_that_is_nan_throughout_is_left_out_by_name(tmp_path: Path) -> None:
    path = nan_bag(tmp_path / "a.mcap")
    episode = read(path)
    assert "joint_states.effort" not in episode.lowdim
    assert parts(episode)["/joint_states/effort"].content == "unusable"
    (finding,) = [each for each in episode.findings if each.code == "left_out.wanted"]
    assert "/joint_states/effort (only NaN" in finding.message
    reader = reader_of(path)
    assert "joint_states.effort" not in reader.survey(list(reader.discover([path]))).fields


def test_a_field_of_a_mapping_that_is_nan_throughout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fields\.e: all 5 rows are NaN"):
        read(nan_bag(tmp_path / "a.mcap"), "fields: {e: /joint_states/effort}")


def test_a_field_whose_first_messages_are_nan_is_read(tmp_path: Path) -> None:
    values = [np.nan, np.nan, 1.0, 2.0]
    sent = [("/force", step / 10, build.numbers(value)) for step, value in enumerate(values)]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    np.testing.assert_array_equal(episode.lowdim["force"].ravel(), values)


# Roles


def mixed_bag(path: Path) -> Path:
    head = build.header()
    empty = np.empty(0, np.uint8)
    points = build.ros("sensor_msgs/msg/PointCloud2", head, 1, 0, [], False, 1, 0, empty, True)
    time = build.ros("builtin_interfaces/msg/Time", 1, 2)
    sent = [
        ("/camera/image_raw", 0.0, build.image(hdf5.image(1), "rgb8")),
        ("/camera/depth", 0.0, build.image(np.ones((24, 32), np.uint16), "16UC1")),
        ("/clock", 0.0, build.ros("rosgraph_msgs/msg/Clock", time)),
        ("/points", 0.0, points),
        ("/robot_description", 0.0, build.ros(build.STRING, "<robot/>")),
        ("/scan", 0.0, build.numbers(*range(300))),
        ("/note", 0.0, build.ros(build.STRING, "slow")),
        ("/tf_static", 0.0, build.transforms(0, base__camera=(1, 2, 3))),
        *build.standard(),
    ]
    return build.bag(path, sent, change=lambda w: w.add_metadata("lab", {"fps": "10", "room": "5"}))


def test_every_topic_has_one_role(tmp_path: Path) -> None:
    path = mixed_bag(tmp_path / "a.mcap")
    episode = read(path)
    roles = {part.path: (part.role, part.name) for part in episode.parts}
    assert roles == {
        "/action": ("field", "action"),
        "/camera/depth": ("depth", "camera"),
        "/camera/image_raw": ("camera", "camera"),
        "/clock": ("left_out", ""),
        "/instruction": ("language", "original"),
        "/joint_states/position": ("field", "joint_states.position"),
        "/joint_states/velocity": ("field", "joint_states.velocity"),
        "/note": ("left_out", ""),
        "/points": ("left_out", ""),
        "/robot_description": ("left_out", ""),
        "/scan": ("left_out", ""),
        "/tf_static": ("left_out", ""),
        "lab@fps": ("time", ""),
        "lab@room": ("left_out", ""),
    }
    assert len(roles) == len(episode.parts)
    reader = reader_of(path)
    assert reader.survey(list(reader.discover([path]))).parts == episode.parts


def test_what_is_left_out_says_why_and_what_takes_it(tmp_path: Path) -> None:
    stored = parts(read(mixed_bag(tmp_path / "a.mcap")))
    assert stored["/points"].note == "a point cloud"
    assert stored["/scan"].note.startswith("300 numbers per row; to use it, write fields")
    assert "base>camera" in stored["/tf_static"].note
    assert "transforms[CHILD]" in stored["/tf_static"].note
    losses = [part.path for part in stored.values() if part.is_loss]
    assert losses == ["/note"]


def test_topics_that_a_mapping_does_not_name_are_left_out_by_name(tmp_path: Path) -> None:
    episode = read(mixed_bag(tmp_path / "a.mcap"), "fields: {q: /joint_states/position}")
    roles = {part.path: part.role for part in episode.parts}
    assert (roles["/joint_states/position"], roles["/action"]) == ("field", "left_out")
    assert "/joint_states" not in roles
    (finding,) = [each for each in episode.findings if each.code == "left_out.wanted"]
    for path in ("/camera/image_raw", "/action", "/note"):
        assert path in finding.message


def test_the_rest_of_a_mapping_may_be_assigned(tmp_path: Path) -> None:
    text = "{fields: {q: /joint_states/position}, rest: assign}"
    episode = read(mixed_bag(tmp_path / "a.mcap"), text)
    assert [*episode.lowdim] == ["q", "action", "joint_states.velocity"]
    assert parts(episode)["/camera/image_raw"].role == "camera"
    assert episode.task == "push"


@pytest.mark.parametrize("key", ["action_fields", "proprioception_fields"])
def test_a_field_of_the_mapping_that_is_not_there_is_named(key: str, tmp_path: Path) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard())
    with pytest.raises(
        DataError, match="there is no field 'nothing'; there is action, joint_states"
    ):
        read(path, f"{{{key}: [nothing], rest: assign}}")


@pytest.mark.parametrize(
    "text",
    [
        "{fields: {q: /joint_states/position}, action_fields: ['next(q)']}",
        "{fields: {q: /joint_states/position, q_next: next(q)}, action_fields: [q_next]}",
    ],
)
def test_an_action_may_be_the_next_state(text: str, tmp_path: Path) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard())
    episode = read(path, text)
    assert (episode.num_frames, episode.cut_frames) == (4, 1)
    assert episode.action_fields == ("q_next",)
    assert episode.lowdim["q_next"][:, 0].tolist() == [1, 2, 3, 4]
    assert episode.lowdim["q"][:, 0].tolist() == [0, 1, 2, 3]
    reader = reader_of(path, text)
    assert reader.survey(list(reader.discover([path]))).fields["q_next"].names == ("a", "b")


def test_two_topics_never_get_one_name(tmp_path: Path) -> None:
    topics = ("/a/b", "/a_b", "/a/b/image_raw")
    sent: list[build.Sent] = []
    for number, topic in enumerate(topics):
        sent.append((topic, 0.0, build.image(hdf5.image(number), "rgb8")))
    for topic in ("/x/y", "/x.y"):
        sent.append((topic, 0.0, build.numbers(1)))
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert len(episode.cameras) == 3
    assert len(episode.lowdim) == 2
    paths = {part.name: part.path for part in episode.parts if part.role == "camera"}
    for name, camera in episode.cameras.items():
        number = topics.index(paths[name])
        np.testing.assert_array_equal(camera.read([0])[0], hdf5.image(number))


# Texts


@pytest.mark.parametrize(
    ("references", "sentence"),
    [
        ("[/first, /second]", "second"),
        ("[lab@task, /second]", "third"),
        ("[/first, '{stem}']", "a take"),
        ("/second", "second"),
    ],
)
def test_the_instruction_is_the_first_that_is_not_empty(
    references: str, sentence: str, tmp_path: Path
) -> None:
    sent = [*build.standard(), ("/first", 0.0, build.ros(build.STRING, " "))]
    sent.append(("/second", 0.0, build.ros(build.STRING, "second")))
    path = build.bag(
        tmp_path / "a_take.mcap", sent, change=lambda w: w.add_metadata("lab", {"task": "third"})
    )
    episode = read(path, f"{{fields: {{a: /action}}, instruction: {references}}}")
    assert episode.task == sentence


def test_other_kinds_of_texts_are_those_of_the_mapping(tmp_path: Path) -> None:
    sent = [*build.standard(), ("/part", 0.0, build.ros(build.STRING, "reach"))]
    sent.append(("/part", 0.2, build.ros(build.STRING, "grasp")))
    path = build.bag(tmp_path / "a.mcap", sent)
    episode = read(path, "{fields: {a: /action}, language: {subtask: /part}}")
    spans = [(span.kind, span.text, span.first, span.last) for span in episode.language_spans]
    assert spans == [("subtask", "reach", 0, 1), ("subtask", "grasp", 2, 4)]
    assert parts(episode)["/part"].name == "subtask"


def test_of_several_texts_the_one_that_is_named_instruction_is_it(tmp_path: Path) -> None:
    sent = [*build.standard(), ("/task_status", 0.0, build.ros(build.STRING, "busy"))]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert episode.task == "push"
    assert parts(episode)["/task_status"].role == "left_out"


def test_a_rate_of_the_mapping_may_be_a_number(tmp_path: Path) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard())
    assert read(path, "{fields: {a: /action}, fps: 5}", fps=None).fps == 5


def test_references_of_a_list_may_be_missing_if_another_is_there(tmp_path: Path) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard())
    text = "{{fields: {{a: /action}}, instruction: {}}}"
    assert read(path, text.format("[/task, lab@task, /instruction, /other]")).task == "push"
    for references in ("[/task, /other]", "/task"):
        with pytest.raises(DataError, match="/task: no such topic") as caught:
            read(path, text.format(references))
        assert caught.value.code == "data.broken"


# Success


def flag(value: Any) -> Any:
    kinds = {bool: build.BOOL, int: "std_msgs/msg/Int32", str: build.STRING}
    return build.ros(kinds[type(value)], value)


@pytest.mark.parametrize(
    ("values", "success"),
    [
        ([False, True], True),
        ([True, False], False),
        ([0, 1], True),
        ([1, 0], False),
        (["running", "Success "], True),
        (["yes", "failure"], False),
        (["no", " "], False),
    ],
)
def test_success_is_the_last_value_of_a_topic(
    values: list[Any], success: bool, tmp_path: Path
) -> None:
    sent = [("/done", n / 10, flag(value)) for n, value in enumerate(values)]
    path = build.bag(tmp_path / "a.mcap", [*build.standard(), *sent])
    episode = read(path, "{fields: {a: /action}, success: /done}")
    assert episode.success is success
    assert parts(episode)["/done"].role == "success"
    assert episode.num_frames == 5


def test_a_success_that_says_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    sent = [*build.standard(), ("/done", 0.4, flag("perhaps"))]
    path = build.bag(
        tmp_path / "a.mcap", sent, change=lambda w: w.add_metadata("lab", {"success": "partly"})
    )
    for reference, reason in (
        ("/done", "perhaps"),
        ("lab@success", "partly"),
        ("lab@ok", "is missing"),
    ):
        with pytest.raises(DataError, match=f"{reference}: .*{reason}"):
            read(path, f"{{fields: {{a: /action}}, success: {reference}}}")
    episode = read(path)
    assert episode.success is None
    part = parts(episode)["lab@success"]
    assert (part.role, part.note) == ("left_out", "success is 'partly', neither true nor false")


def test_an_episode_without_a_message_of_success_names_the_topic(tmp_path: Path) -> None:
    sent: list[build.Sent] = []
    for number in range(2):
        for topic, seconds, message in build.standard():
            sent.append((topic, seconds + 10 * number, message))
    sent.append(("/success", 10.4, flag(True)))
    path = build.bag(tmp_path / "a.mcap", sorted(sent, key=lambda item: item[1]))
    reader = reader_of(path, gap_s=2)
    first, second = (reader.read(ref) for ref in reader.discover([path]))
    assert (first.success, second.success) == (None, True)
    assert parts(first)["/success"].note == "it has no message, so the success is unknown"


def test_a_topic_named_success_is_it_if_it_is_the_only_one(tmp_path: Path) -> None:
    sent = [*build.standard(), ("/task/success", 0.4, flag(True))]
    path = build.bag(tmp_path / "a.mcap", sent)
    episode = read(path)
    assert (episode.success, episode.num_frames) == (True, 5)
    assert "success: /task/success" in (McapReader.propose(path) or "").replace('"', "")
    sent += [("/other/success", 0.4, flag(False)), ("/third/success", 0.4, flag("perhaps"))]
    episode = read(build.bag(tmp_path / "b.mcap", sent))
    assert episode.success is None
    notes = [parts(episode)[topic].note for topic in ("/task/success", "/other/success")]
    assert all(note.startswith("one of several flags") for note in notes)
    assert parts(episode)["/third/success"].role == "left_out"


# Values that do not fit


def joint_bag(path: Path, names: Sequence[str], count: int = 5, **values: Any) -> Path:
    """JointState at 10 Hz; `values`: numbers of a member by step."""
    sent = build.standard(count)
    for step, (topic, _, message) in enumerate(sent[1::2]):
        assert topic == "/joint_states"
        message.name = [*names]
        for member, numbers in values.items():
            setattr(message, member, np.array(numbers(step), np.float64))
    return build.bag(path, sent)


def test_joint_values_of_another_number_are_named(tmp_path: Path) -> None:
    path = joint_bag(tmp_path / "a.mcap", "ab", effort=lambda step: [step])
    part = parts(read(path))["/joint_states/effort"]
    assert (part.role, part.note.partition(";")[0]) == ("left_out", "has 1 number of 2 joints")
    text = "fields: {e: /joint_states/effort.0}"
    assert read(path, text).lowdim["e"].ravel().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="has 1 number of 2 joints"):
        read(path, "fields: {e: /joint_states/effort}")


def test_two_joints_of_one_name_are_named(tmp_path: Path) -> None:
    path = joint_bag(tmp_path / "a.mcap", "aa")
    episode = read(path)
    assert [*episode.lowdim] == ["action"]
    for member in ("position", "velocity"):
        part = parts(episode)[f"/joint_states/{member}"]
        assert part.note.startswith("has two joints named a;")
    with pytest.raises(DataError, match="has two joints named a"):
        read(path, "fields: {q: /joint_states/position}")


def test_joint_values_that_come_later_are_named(tmp_path: Path) -> None:
    path = joint_bag(
        tmp_path / "a.mcap", "ab", 20, effort=lambda step: [step, -step] if step > 13 else []
    )
    reason = "has its first numbers 1.4 s after the first message"
    for text in ("", "fields: {q: /joint_states/position}"):
        part = parts(read(path, text))["/joint_states/effort"]
        assert (part.role, part.note.partition(";")[0]) == ("left_out", reason)
    assert f"# left out: /joint_states/effort: {reason}" in (McapReader.propose(path) or "")
    episode = read(path, "fields: {e: /joint_states/effort}")
    assert episode.lowdim["e"][0].tolist() == [14, -14]
    assert "left_out.wanted" not in [
        each.code for each in episode.findings if "effort" in each.message
    ]


def test_joints_without_names_are_plain_numbers(tmp_path: Path) -> None:
    episode = read(joint_bag(tmp_path / "a.mcap", []))
    assert episode.lowdim["joint_states"].shape == (5, 4)
    assert [path for path in parts(episode) if path.startswith("/joint")] == ["/joint_states"]


def test_numbers_that_change_their_length_are_named(tmp_path: Path) -> None:
    def changing(name: str, last: int) -> Path:
        sent = build.standard(20)
        for step in range(20):
            numbers = build.numbers(*[1.0] * (4 if step > last else 3))
            sent.append(("/length", step / 10, numbers))
        return build.bag(tmp_path / name, sorted(sent, key=lambda item: item[1]))

    late = changing("late.mcap", 15)
    with pytest.raises(DataError, match="/length: its messages have different lengths: 3 numbers"):
        read(late)
    early = changing("early.mcap", 5)
    note = "its messages have different lengths: 3, 4"
    assert parts(read(early))["/length"].note == note
    for path in (early, late):
        text = McapReader.propose(path) or ""
        assert "# left out: /length: its messages have different lengths: " in text
        assert "length" not in read(path, text).lowdim


def test_a_topic_with_a_damaged_message_is_left_out_of_a_proposal(tmp_path: Path) -> None:
    def add_damage(writer: Any) -> None:
        text = build.store().generate_msgdef(build.NUMBERS, ros_version=2)[0].encode()
        schema = writer.register_schema(build.NUMBERS, "ros2msg", text)
        channel = writer.register_channel("/broken", "cdr", schema)
        good = bytes(build.store().serialize_cdr(build.numbers(1), build.NUMBERS))
        for seconds, data in ((0, good), (1.5, good[:9])):
            time = build.START + int(seconds * 1e9)
            writer.add_message(channel, time, data, time)

    path = build.bag(tmp_path / "a.mcap", build.standard(20), change=add_damage)
    with pytest.raises(DataError, match="/broken"):
        read(path)
    text = McapReader.propose(path) or ""
    assert "# left out: /broken: " in text
    assert read(path, text).num_frames > 0


def test_a_bag_that_lost_a_camera_is_broken(tmp_path: Path) -> None:
    for number in range(3):
        sent = build.standard()
        for name in ("left",) if number == 1 else ("left", "right"):
            for step in range(5):
                image = build.image(hdf5.image(step), "rgb8", step / 10)
                sent.append((f"/{name}/image", step / 10, image))
        build.bag(tmp_path / f"{number}.mcap", sent)
    reader = reader_of(tmp_path)
    several = [reader.read(ref) for ref in reader.discover([tmp_path])]
    assert [[*episode.missing_cameras] for episode in several] == [[], ["right"], []]


def test_a_text_in_a_message_costs_itself_alone(tmp_path: Path) -> None:
    sent: list[build.Sent] = []
    none = np.zeros(0)
    for step in range(5):
        span = build.ros("builtin_interfaces/msg/Duration", 0, 0)
        kind = "trajectory_msgs/msg/JointTrajectory"
        place = np.array([float(step), 1.0])
        point = build.ros(f"{kind}Point", place, none, none, none, span)
        plan = build.ros(kind, build.header(step / 10), ["a", "b"], [point])
        sent += [("/action", step / 10, build.numbers(step, 1)), ("/plan", step / 10, plan)]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert episode.lowdim["plan"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert parts(episode)["/plan/joint_names"].role == "left_out"
