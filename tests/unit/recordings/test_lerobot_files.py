"""Places of episodes in files. Source: formats/lerobot-writing 2."""

from vlatool.recordings.lerobot.numbering import Rolling


def test_files_stay_below_their_size_and_chunks_have_a_number_of_files() -> None:
    rolling = Rolling(limit=10, chunks_size=2)
    positions = [rolling.place(size) for size in (4, 5, 1, 20, 3, 3)]
    assert positions == [
        (0, 0, True),
        (0, 0, False),
        (0, 1, True),
        (1, 0, True),
        (1, 1, True),
        (1, 1, False),
    ]


def test_clips_of_another_kind_begin_a_file() -> None:
    rolling = Rolling(limit=10, chunks_size=1000)
    kinds = ({"codec": "h264"}, {"codec": "h264"}, {"codec": "av1"})
    assert [rolling.place(1, kind)[1] for kind in kinds] == [0, 0, 1]
