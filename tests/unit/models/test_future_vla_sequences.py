"""Sequences of FUTURE-VLA: grid, token ids, chat layout, positions and labels.

Source: reference/future-vla 5.2; reference/future-vla-model 1.
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlatool.datasets.base_model import read_tokenizer
from vlatool.datasets.samples.episode import (
    PUBLISHED_SIZES,
    Conversation,
    SampleSizes,
    parse_messages,
)
from vlatool.errors import DataError, UsageError
from vlatool.loading.vla.config import VlaSample
from vlatool.models.base import Batch, StepContext
from vlatool.models.future_vla.batch import (
    FUTURE,
    MOVING,
    NO_LABEL,
    SEGMENTS,
    SequenceEncoder,
    TokenSequence,
    VlaBatcher,
    moving_codes,
    with_futures,
)
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.fit import FrameGrid
from vlatool.models.future_vla.model import AnswerObjective
from vlatool.models.future_vla.token_ids import TokenIds, parse_tokenizer, tiny_tokenizer
from vlatool.models.rng import PerSampleRng

SHARED = Path(__file__).parents[3].parent / "shared/data"
PUBLISHED_GRID = FrameGrid(2, (8, 6, 2), 16, 2)
SIZES = SampleSizes(codes_per_image=3, codebook_size=20, action_ids=10)
SIDES = (1, 2)
ENCODING = tiny_tokenizer(30)
DOCUMENT = ENCODING.to_str()
IDS = TokenIds.of(ENCODING, SIZES)


def talk(task: str = "fold it", **changes: Any) -> Conversation:
    codes = np.array([[0, 19, 7], [1, 2, 3]], np.uint16)
    values: dict[str, Any] = {"kind": "vla", "images": 2, "action_ids": (0, 9), "codes": codes}
    return Conversation(task=task, **{**values, **changes})


def encoder() -> SequenceEncoder:
    return SequenceEncoder(DOCUMENT, IDS, SIDES)


@pytest.fixture(name="published", params=["vla", "wm"])
def read_published(request: pytest.FixtureRequest) -> Conversation:
    """The sample of the published guide."""
    path = Path(os.environ.get("VLATOOL_GUIDE_SAMPLE", SHARED / "guide_sample.jsonl"))
    if not path.is_file():
        pytest.skip(f"no published lines at {path}; set VLATOOL_GUIDE_SAMPLE to their file")
    lines = path.read_text(encoding="utf-8").splitlines()
    talks = [parse_messages(json.loads(line)["messages"]) for line in lines]
    return next(talk for talk in talks if talk.kind == request.param)


@pytest.mark.parametrize(
    ("views", "compress", "images", "tokens"),
    [(2, (8, 6, 2), 32, 512), (2, (0, 0, 16), 32, 2048), (3, (8, 6, 2), 48, 768)],
)
def test_grid_gives_the_published_numbers_of_tokens(
    views: int, compress: tuple[int, int, int], images: int, tokens: int
) -> None:
    grid = FrameGrid(views, compress, 16, 2)
    assert (grid.images, grid.tokens) == (images, tokens)
    assert len(grid.patch_sides) == images


def test_grid_whose_patches_do_not_merge_is_an_error() -> None:
    assert FrameGrid(1, (0, 1, 1), 4, 2).token_sides == (1, 2)
    with pytest.raises(ValueError, match="compressed to 1 x 1"):
        FrameGrid(1, (1, 1, 1), 4, 2)


def test_published_sample_has_the_published_tokens_and_positions(published: Conversation) -> None:
    """Texts aside, whose tokens depend on the vocabulary."""
    tokenizer = tiny_tokenizer(6144)
    ids = TokenIds.of(tokenizer, PUBLISHED_SIZES)
    sides = PUBLISHED_GRID.token_sides
    row = SequenceEncoder(tokenizer.to_str(), ids, sides).encode(published)
    is_image = np.isin(row.ids, [ids.vision_start, ids.image_pad, ids.vision_end])
    positions = row.positions[:, is_image]
    assert (is_image.sum(), positions.max() - positions.min() + 1) == (576, 176)
    assert segment_counts(row)["action"] == 19
    assert segment_counts(row)["future"] == 1088


def test_published_sample_has_the_published_token_ids(published: Conversation) -> None:
    folder = os.environ.get("VLATOOL_QWEN_TOKENIZER")
    if not folder:
        pytest.skip("set VLATOOL_QWEN_TOKENIZER to a folder with the tokenizer.json of Qwen3-VL")
    document = read_tokenizer(Path(folder))
    ids = TokenIds.of(parse_tokenizer(document), PUBLISHED_SIZES)
    published_ids = (151_643, 149_595, 145_499, 151_669, 151_670, 151_671, 151_672)
    assert published_ids == (
        ids.end_of_text,
        ids.first_action,
        ids.first_code,
        ids.action_start,
        ids.action_end,
        ids.future_start,
        ids.future_end,
    )
    encoder = SequenceEncoder(document, ids, PUBLISHED_GRID.token_sides)
    row, texts = encoder.encode(published), encoder.answer_texts(published.kind)
    lengths = {"vla": (1739, 1122), "wm": (1763, 1120)}
    assert (len(row.ids), int((row.labels != NO_LABEL).sum())) == lengths[published.kind]
    lead = {"vla": (785, 12305, 1265, 9026), "wm": (6025, 30220)}
    middle = {
        "vla": (11, 892, 686, 2990, 311, 279, 1790, 1584),
        "wm": (11, 279, 1849, 686, 9142, 311, 279, 1584),
    }
    assert texts == (lead[published.kind], middle[published.kind], (13, 151_645, 198))
    assert row.ids[:3].tolist() == [151_644, 872, 198]
    switch = [151_645, 198, 151_644, 77_091, 198]
    assert row.ids[: -lengths[published.kind][1]][-5:].tolist() == switch


def test_a_sequence_is_the_chat_with_numbers_as_ids() -> None:
    row = encoder().encode(talk())
    first = int(np.argmax(row.labels != NO_LABEL))
    assert ENCODING.decode(row.ids[:first].tolist(), skip_special_tokens=False) == (
        "<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>"
        "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
        "Task: fold it. Based on the images, what action should be executed?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answer = row.ids[first:]
    is_number = np.isin(row.segments[first:], [2, 3])
    a, c = IDS.first_action, IDS.first_code
    assert answer[is_number].tolist() == [
        *(IDS.action_start, a, a + 9, IDS.action_end),
        *(IDS.future_start, c, c + 19, c + 7, IDS.future_end),
        *(IDS.future_start, c + 1, c + 2, c + 3, IDS.future_end),
    ]
    assert ENCODING.decode(answer[~is_number].tolist(), skip_special_tokens=False) == (
        "The robot should execute, which will lead to the next state.<|im_end|>\n"
    )


def test_labels_are_the_answer() -> None:
    row = encoder().encode(talk(kind="wm"))
    is_labelled = row.labels != NO_LABEL
    np.testing.assert_array_equal(row.labels[is_labelled], row.ids[is_labelled])
    np.testing.assert_array_equal(row.segments > 0, is_labelled)
    assert is_labelled[np.argmax(is_labelled) :].all()
    # The actions of the question have no label.
    assert (row.ids == IDS.action_start).sum() == 2
    assert (row.labels == IDS.action_start).sum() == 1


def test_positions_of_an_image_are_its_rows_and_columns() -> None:
    row = encoder().encode(talk())
    start = int(np.argmax(row.ids == IDS.vision_start))
    expected = [
        *([start] * 3, [start + 1] * 3, [start + 2] * 3),
        [start + 3] * 3,
        *([start + 4, start + 4 + y, start + 4 + x] for y in (0, 1) for x in (0, 1)),
        *([start + 6] * 3, [start + 7] * 3),
    ]
    assert row.positions[:, start : start + len(expected)].T.tolist() == expected
    np.testing.assert_array_equal(row.positions[:, :start], np.tile(np.arange(start), (3, 1)))
    np.testing.assert_array_equal(np.diff(row.positions[:, start + len(expected) :]), 1)


def test_prompt_is_the_sequence_before_the_answer() -> None:
    whole, prompt = encoder().encode(talk()), encoder().prompt("fold it")
    first = int(np.argmax(whole.labels != NO_LABEL))
    np.testing.assert_array_equal(prompt.ids, whole.ids[:first])
    np.testing.assert_array_equal(prompt.positions, whole.positions[:, :first])
    assert prompt.next_position == whole.positions[0, first]
    row = encoder().encode(talk(images=0))  # a sequence without images
    assert IDS.image_pad not in row.ids
    np.testing.assert_array_equal(row.positions, np.tile(np.arange(len(row.ids)), (3, 1)))


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (talk(images=3), "has 3 past images, but the model expects 2"),
        (talk(action_ids=(10,)), "action id 10, not below 10"),
        (talk(codes=np.array([[20, 0, 0]], np.uint16)), "code 20, not below 20"),
        (talk(codes=np.zeros((1, 4), np.uint16)), "4 codes per image, not 3"),
        (talk("say <|im_end|>"), f"the token {IDS.im_end}, which is reserved"),
        (talk("say <|A_START|>"), f"the token {IDS.action_start}, which is reserved"),
    ],
    ids=["images", "action id", "code", "codes", "chat token", "marker"],
)
def test_unusable_samples_are_errors_that_name_the_line(
    conversation: Conversation, message: str
) -> None:
    sample = VlaSample("data/a.jsonl:3", conversation, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=f"^data/a.jsonl:3: .*{message}"):
        VlaBatcher(encoder())([sample])


def test_batches_are_padded_on_the_right() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    samples = [VlaSample("a", talk(), images), VlaSample("b", talk("fold it twice"), images)]
    batcher = pickle.loads(pickle.dumps(VlaBatcher(encoder())))
    batch = batcher(samples)
    rows = [encoder().encode(sample.conversation) for sample in samples]
    length = batch["input_ids"].shape[1]
    assert length % 16 == 0
    for at, row in enumerate(rows):
        stop = len(row.ids)
        assert batch["attention_mask"][at].tolist() == [n < stop for n in range(length)]
        assert batch["input_ids"][at, :stop].tolist() == row.ids.tolist()
        assert set(batch["input_ids"][at, stop:].tolist()) == {IDS.end_of_text}
        assert set(batch["labels"][at, stop:].tolist()) == {NO_LABEL}
        assert batch["segments"][at].tolist() == [*row.segments, *[0] * (length - stop)]
        assert batch["position_ids"][at, :, :stop].tolist() == row.positions.tolist()
    assert batch["images"].shape == (2, 2, 4, 4, 3)


def whole_batch(*talks: Conversation) -> Batch:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    return VlaBatcher(encoder())([VlaSample(str(n), each, images) for n, each in enumerate(talks)])


def test_future_images_that_are_left_keep_their_positions() -> None:
    whole = whole_batch(talk(), talk("a longer instruction"), talk(kind="wm"))
    is_kept = torch.tensor([[True, False], [False, True], [False, False]])
    batch = with_futures(whole, IDS.future_start, is_kept)
    assert {*batch} == {*whole}
    for at, images in enumerate(is_kept.tolist()):
        ids = whole["input_ids"][at].tolist()
        first = ids.index(IDS.future_start)
        left_out = {first + 5 * n + k for n in range(2) if not images[n] for k in range(5)}
        columns = [n for n in range(int(whole["attention_mask"][at].sum())) if n not in left_out]
        labels = whole["labels"][at].clone()
        labels[[column + 1 for column in left_out]] = NO_LABEL  # right after a gap
        stop = len(columns)
        assert batch["input_ids"][at, :stop].tolist() == [ids[column] for column in columns]
        assert batch["labels"][at, :stop].tolist() == labels[columns].tolist()
        assert {*batch["labels"][at, stop:].tolist()} <= {NO_LABEL}
        assert batch["segments"][at, :stop].tolist() == whole["segments"][at, columns].tolist()
        assert batch["attention_mask"][at].sum() == batch["attention_mask"][at, :stop].sum() == stop
        positions = whole["position_ids"][at][:, columns]
        torch.testing.assert_close(batch["position_ids"][at, :, :stop], positions)
    longer = whole_batch(talk(codes=np.zeros((4, 3), np.uint16)))
    without = with_futures(longer, IDS.future_start, torch.zeros(1, 4, dtype=torch.bool))
    assert without["input_ids"].shape[1] < longer["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("share", "images"), [(1.0, [2, 2, 2, 2]), (0.5, [1, 1, 1, 1]), (0.3, [1, 1, 0, 1]), (0, [0])]
)
def test_a_share_of_the_future_images(share: float, images: list[int]) -> None:
    whole = whole_batch(*[talk()] * 8)
    tokens = IDS.model_dump()
    objective = AnswerObjective(FutureVlaConfig(tokens=tokens, future_share=share))
    for step, count in enumerate(images):
        rng = PerSampleRng(lambda _: torch.Generator().manual_seed(1), range(8), 8)
        batch = objective.prepare(whole, StepContext(step, rng, {}))
        is_start = batch["attention_mask"] & (batch["input_ids"] == IDS.future_start)
        starts = batch["position_ids"][:, 0][is_start]
        assert len(starts) == 8 * count
        assert len(starts.unique()) == min(2, 2 * count)  # not the same one of all samples
    validation = StepContext(1, Any, {}, training=False)
    assert objective.prepare(whole, validation) is whole
    without = whole_batch(talk(codes=np.zeros((0, 3), np.uint16)))
    assert objective.prepare(without, StepContext(1, Any, {})) is without


def test_codes_that_change_at_their_place_of_a_camera_are_moving() -> None:
    codes = np.array([[4, 5, 6], [7, 8, 9], [4, 5, 1], [7, 2, 9]], np.uint16)  # two cameras
    still = np.array([[4, 5, 6], [7, 8, 9]], np.uint16)
    batch = whole_batch(talk(codes=codes), talk("fold", codes=still), talk(codes=codes, kind="wm"))
    segments = moving_codes(batch, 2 * (3 + 2))
    for row in (0, 2):
        ids = batch["input_ids"][row][segments[row] == MOVING]
        assert (ids - IDS.first_code).tolist() == [6, 8, 1, 2]
    assert segments[1].tolist() == batch["segments"][1].tolist()
    assert segments.clamp(max=FUTURE).tolist() == batch["segments"].tolist()


def test_a_sample_over_the_limit_is_an_error() -> None:
    sample = VlaSample("data/a.jsonl:3", talk(), np.zeros((2, 8, 8, 3), np.uint8))
    length = len(encoder().encode(talk()).ids)
    assert VlaBatcher(encoder(), length)([sample])
    with pytest.raises(DataError, match=f"has {length} tokens, but the limit is {length - 1}"):
        VlaBatcher(encoder(), length - 1)([sample])


def test_a_vocabulary_without_room_or_special_tokens_is_an_error() -> None:
    available = tiny_tokenizer(0).token_to_id("<|endoftext|>") - 256
    sizes = SIZES._replace(codebook_size=available)
    with pytest.raises(
        UsageError, match=f"room for {available} codes and action ids, but the data"
    ):
        TokenIds.of(tiny_tokenizer(0), sizes)
    document = json.loads(DOCUMENT)
    document["added_tokens"] = document["added_tokens"][:1]
    with pytest.raises(DataError, match=r"no token <\|im_start\|>"):
        TokenIds.of(parse_tokenizer(json.dumps(document)), SIZES)


def segment_counts(row: TokenSequence) -> dict[str, int]:
    return {name: int((row.segments == number).sum()) for number, name in SEGMENTS.items()}
