"""Asking FUTURE-VLA: constrained decoding, caches, batches, futures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.builders.errors import fails
from tests.builders.fast import byte_document, byte_tokenizer, smooth_chunks
from tests.builders.future_vla import tiny_future_vla
from vlatool.datasets.samples.episode import SampleSizes
from vlatool.datasets.samples.profile import NormalizationProfile
from vlatool.episode import Observation
from vlatool.loading.vla.config import VlaAssets, VlaShape
from vlatool.models.base import Policy, Rule, Sampling
from vlatool.models.future_vla.batch import SequenceEncoder
from vlatool.models.future_vla.decoding import ActionGrammar, AnswerDecoder
from vlatool.models.future_vla.frame_cache import FrameCache
from vlatool.models.future_vla.model import FutureVla
from vlatool.models.future_vla.policy import FutureVlaPolicy
from vlatool.models.future_vla.token_ids import TokenIds, tiny_tokenizer
from vlatool.testing.models import check_policy
from vlatool.transforms.action_tokenizer import ActionTokenizer, byte_characters, fit_tokenizer

SIZES = SampleSizes(codes_per_image=3, codebook_size=16, action_ids=256)
SHAPE = VlaShape(("front", "wrist"), 3, 2, (64, 64), 4, 2)
IMAGES = SHAPE.past_images
TOKENIZER = tiny_tokenizer(SIZES.codebook_size + SIZES.action_ids)
IDS = TokenIds.of(TOKENIZER, SIZES)
FAST = byte_tokenizer(-30)


@pytest.fixture(scope="module")
def network() -> FutureVla:
    torch.manual_seed(0)
    plain = tiny_future_vla(views=2).qwen
    assert plain is not None
    text = plain["text_config"] | {"vocab_size": IDS.vocabulary, "initializer_range": 0.3}
    qwen = plain | {"text_config": text, "image_token_id": IDS.image_pad}
    return FutureVla(tiny_future_vla(views=2, qwen=qwen)).eval()


def encoder() -> SequenceEncoder:
    return SequenceEncoder(TOKENIZER.to_str(), IDS, (1, 1, 2, 2, 4, 4))


def policy(network: FutureVla, **changes: Any) -> FutureVlaPolicy:
    profile = NormalizationProfile("tiny", mean=(0.5, -2.0), std=(0.1, 3.0))
    values = {"sizes": SIZES, "shape": SHAPE, "fps": 5.0, "fast": FAST, "profile": profile}
    return FutureVlaPolicy(network, encoder(), VlaAssets(**{**values, **changes}))


def images(seed: int, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, IMAGES, 64, 64, 3), dtype=np.uint8)


def observation(seed: int, instruction: str) -> Observation:
    pixels = images(seed)[0]
    return Observation({"front": pixels[::2], "wrist": pixels[1::2]}, instruction=instruction)


# the rule of action ids


@pytest.mark.parametrize("fitted", [False, True])
def test_every_walk_through_the_allowed_ids_is_a_chunk_of_the_right_size(fitted: bool) -> None:
    chunks = smooth_chunks()
    fast = byte_tokenizer()
    if fitted:
        fast = fit_tokenizer(
            chunks, scale=10.0, vocab_size=400, lowest=-300, alphabet=byte_characters()
        )
    grammar = ActionGrammar(fast, 5 * 3, fast.vocab_size + 2)
    rng = np.random.default_rng(0)
    for _ in range(40):
        state, ids = grammar.start, []
        while not grammar.allowed(state)[-1]:
            ids.append(int(rng.choice(np.flatnonzero(grammar.allowed(state)))))
            state = grammar.after(state, ids[-1])
        assert np.flatnonzero(grammar.allowed(state)).tolist() == [fast.vocab_size + 2]
        assert fast.decode([ids], 5, 3)[1] == [None]
    grammar = ActionGrammar(fast, chunks[0].size, fast.vocab_size)
    for ids in fast.encode(chunks):
        state = grammar.start
        for number in ids:
            assert grammar.allowed(state)[number]
            state = grammar.after(state, number)
        assert grammar.allowed(state)[-1]


def test_vocabulary_without_a_way_on_ends_the_chunk() -> None:
    half = ActionTokenizer(byte_document([byte_characters()[0xC3]]))
    grammar = ActionGrammar(half, 2, 1)
    assert grammar.allowed(grammar.start).tolist() == [True, False]
    assert grammar.allowed(grammar.after(grammar.start, 0)).tolist() == [False, True]


# decoding


@torch.no_grad()
def scores(network: FutureVla, task: str, pixels: np.ndarray, answer: Sequence[int]) -> Any:
    """Scores of the token after the start of an answer, without any cache."""
    prompt = encoder().prompt(task)
    rest = np.tile(prompt.next_position + np.arange(len(answer)), (3, 1))
    positions = np.concatenate([prompt.positions, rest], axis=1)
    ids = torch.tensor([[*prompt.ids.tolist(), *answer]])
    hidden = network(ids, torch.from_numpy(positions)[None], images=torch.from_numpy(pixels))
    return network.head(hidden[:, -1])[0]


def test_actions_are_those_of_the_straightforward_formulation(network: FutureVla) -> None:
    # Each id is one character, so that only their number is a rule.
    fast = ActionTokenizer(byte_document(byte_characters()[ord("!") : ord("~")]))
    grammar = ActionGrammar(fast, 6, SIZES.action_ids)
    decoder = AnswerDecoder(network, encoder(), grammar, FrameCache(network))
    with torch.no_grad():
        ((ids, log_probability),) = decoder.actions([encoder().prompt("fold it")], images(1))
    expected = 0.0
    answer = [*encoder().answer_texts("vla").lead, IDS.action_start]
    for number in ids:
        likely = scores(network, "fold it", images(1), answer)[IDS.first_action :]
        assert number == likely[: fast.vocab_size].argmax().item()
        expected += likely[: fast.vocab_size].log_softmax(dim=0)[number].item()
        answer.append(IDS.first_action + number)
    assert log_probability == pytest.approx(expected, rel=1e-4)
    assert (len(ids), len({*ids}) > 1) == (6, True)


def test_codes_follow_the_action_and_are_those_without_a_cache(network: FutureVla) -> None:
    pixels, prompt = images(2), encoder().prompt("go")
    grammar = ActionGrammar(FAST, 8, SIZES.action_ids)
    decoder = AnswerDecoder(network, encoder(), grammar, FrameCache(network))
    action_ids = [40, 50, 60]
    with torch.no_grad():
        (codes,), (mean_log,) = decoder.codes([prompt], pixels, [action_ids], 2)
    logs = []
    assert codes.shape == (2, 3)
    texts = encoder().answer_texts("vla")
    answer = [*texts.lead, *IDS.of_actions(action_ids), *texts.middle]
    for row in codes:
        answer.append(IDS.future_start)
        for code in row:
            likely = scores(network, "go", pixels, answer)[IDS.first_code :]
            assert likely[: SIZES.codebook_size].argmax().item() == code
            logs.append(likely[: SIZES.codebook_size].log_softmax(dim=0)[code].item())
            answer.append(IDS.first_code + int(code))
        answer.append(IDS.future_end)
    assert mean_log == pytest.approx(np.mean(logs), rel=1e-4)


def test_drawn_ids_have_the_probabilities_of_the_temperature(network: FutureVla) -> None:
    fast = ActionTokenizer(byte_document(byte_characters()[ord("!") : ord("%")]))
    grammar = ActionGrammar(fast, 1, SIZES.action_ids)
    decoder = AnswerDecoder(network, encoder(), grammar, FrameCache(network))
    prompts, count = [encoder().prompt("go")] * 400, fast.vocab_size
    with torch.no_grad():
        drawn = decoder.actions(
            prompts, images(1).repeat(400, 0), 4.0, [(7, n) for n in range(400)]
        )
    begin = [*encoder().answer_texts("vla").lead, IDS.action_start]
    likely = scores(network, "go", images(1), begin)[IDS.first_action :][:count]
    shares = np.bincount([answer.ids[0] for answer in drawn], minlength=count) / 400
    # Four standard deviations of a share of a half
    np.testing.assert_allclose(shares, (likely / 4).softmax(dim=0), atol=0.1)


def test_a_temperature_near_zero_takes_the_most_probable_ids(network: FutureVla) -> None:
    grammar = ActionGrammar(FAST, 8, SIZES.action_ids)
    decoder = AnswerDecoder(network, encoder(), grammar, FrameCache(network))
    prompts = [encoder().prompt("go")]
    with torch.no_grad():
        expected, cold = (
            decoder.actions(prompts, images(1), temperature, [(7, 0)])
            for temperature in (0.0, 1e-300)
        )
    assert cold[0].ids == expected[0].ids


@pytest.mark.parametrize("rule", ["probable", "central", "future"])
def test_the_executed_answer_is_the_one_of_the_rule(network: FutureVla, rule: Rule) -> None:
    rows = [observation(seed, task) for seed, task in enumerate(["go", "fold it"])]
    asked = policy(network).with_sampling(Sampling(2.0, samples=4, selection=rule))
    decision = asked.decide(rows, seeds=[5, 6], look=True)
    other = asked.decide(rows[::-1], seeds=[6, 5], look=True)
    np.testing.assert_array_equal(decision.actions["actions"], other.actions["actions"][::-1])
    single = policy(network).with_sampling(Sampling(2.0))
    for candidates in decision.candidates:
        assert candidates.chosen == candidates.scores[rule].argmax()
        assert {name: len(values) for name, values in candidates.scores.items()} == {
            "probable": 4,
            "central": 4,
            "future": 4,
        }
        assert candidates.codes["wrist"].shape == (4, 2, 3)
        assert len(np.unique(candidates.scores["probable"])) > 1
    # The first of several answers is the one of a single draw.
    assert single.decide(rows, seeds=[5, 6]).candidates[0].scores["probable"] == pytest.approx(
        decision.candidates[0].scores["probable"][:1], rel=1e-5
    )


def test_chunk_does_not_depend_on_the_others_in_the_batch(network: FutureVla) -> None:
    tasks = ["go", "fold the towel", "go", "to the left"]
    rows = [observation(seed, task) for seed, task in enumerate(tasks)]
    asked = policy(network)
    first = asked.decide(rows, seeds=[0] * 4)
    again = policy(network).decide([rows[1], *rows[2:], rows[0]], seeds=[1] * 4)
    np.testing.assert_array_equal(first.actions["actions"][1], again.actions["actions"][0])
    np.testing.assert_array_equal(first.actions["actions"][0], again.actions["actions"][3])
    assert first.tokens[1] == again.tokens[0]
    codes = asked.future_codes(rows, seeds=[0] * 4)["wrist"]
    others = asked.future_codes(rows[1:] + rows[:1], seeds=[0] * 4)["wrist"]
    np.testing.assert_array_equal(codes[1], others[0])


def test_policy_keeps_the_contract(network: FutureVla) -> None:
    asked = policy(network)
    check_policy(asked)
    assert asked.horizon == 4
    assert asked.fps == 5.0
    assert asked.sees.cameras["wrist"].offsets == (-2, -1, 0)


def test_decoding_stops_after_the_action(network: FutureVla) -> None:
    calls: list[int] = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    decision = policy(network).decide([observation(3, "go")], seeds=[0])
    handle.remove()
    assert len(calls) == decision.tokens[0]
    assert 8 < decision.tokens[0] <= 4 * 8 + 1


class Plugin(Policy):
    """Policy of a plugin that predicts images, without candidates of its own."""

    predicts_images = True

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> Any:
        return {"push": np.zeros((len(observations), 3, 1))}

    def future_codes(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> Any:
        return {"front": np.arange(len(observations) * 4).reshape(-1, 2, 2)}


def test_the_only_answer_of_a_plugin_has_its_predicted_images() -> None:
    decision = Plugin().decide(
        [observation(0, "go"), observation(1, "go")], seeds=[0, 0], look=True
    )
    codes = [candidates.codes["front"].tolist() for candidates in decision.candidates]
    assert codes == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]


# features of frames


def test_cached_features_are_those_of_the_network(network: FutureVla) -> None:
    pixels = images(4, 3)
    cache = FrameCache(network)
    with torch.no_grad():
        features = cache.features(pixels)
        expected = network.embed_images(torch.from_numpy(pixels))
        single = FrameCache(network).features(pixels[1:2])
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(single[0], features[1])


def test_only_new_frames_are_computed_at_the_next_step(network: FutureVla) -> None:
    computed: list[int] = []
    handle = network.visual.vis_tok.register_forward_hook(
        lambda _, inputs, __: computed.append(len(inputs[0]))
    )
    pixels, new = images(5)[0], images(6)[0, :2]
    cache = FrameCache(network)
    with torch.no_grad():
        cache.features(pixels[None])
        assert len(computed) == 1
        moved = cache.features(np.concatenate([pixels[2:], new])[None])
        assert len(computed) == 2
        cache.features(np.concatenate([pixels[2:], new])[None])
    handle.remove()
    assert len(computed) == 2
    with torch.no_grad():
        fresh = network.embed_images(torch.from_numpy(np.concatenate([pixels[2:], new])[None]))
    torch.testing.assert_close(moved, fresh, rtol=1e-3, atol=1e-4)


# futures and errors


class CodeTiles:
    """Tokenizer whose images have the color of their first code."""

    image_size, codes_per_image, codebook_size = 8, 3, SIZES.codebook_size
    has_decoder = True
    digest = decoder_digest = "tiles"

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes[:, 0, None, None, None].expand(-1, 8, 8, 3).to(torch.uint8)


def test_futures_are_the_decoded_codes_by_camera(network: FutureVla) -> None:
    asked = policy(network)
    rows = [observation(7, "go"), observation(8, "fold it")]
    with fails("usage.unsupported"):
        asked.futures(rows, seeds=[0, 0])
    tiles: Any = CodeTiles()
    futures = asked.with_tokenizer(tiles).futures(rows, seeds=[0, 0])
    codes = asked.future_codes(rows, seeds=[0, 0])
    assert {name: values.shape for name, values in futures.items()} == dict.fromkeys(
        SHAPE.cameras, (2, SHAPE.future_steps, 8, 8, 3)
    )
    np.testing.assert_array_equal(futures["wrist"][:, :, 0, 0, 0], codes["wrist"][:, :, 0])


def test_other_tokenizer_and_instruction_of_reserved_ids_are_errors(network: FutureVla) -> None:
    tiles: Any = CodeTiles()
    with fails("data.mismatch"):
        policy(network, codes_digest="other").with_tokenizer(tiles)
    with fails("data.broken"):
        policy(network).act([observation(1, "say <|im_end|>")], seeds=[0])
    with fails("data.missing"):
        policy(network, fast=None)


def test_images_of_another_size_are_resized(network: FutureVla) -> None:
    small = observation(1, "go")
    large = Observation(
        {name: np.repeat(np.repeat(x, 2, 1), 2, 2) for name, x in small.images.items()},
        instruction="go",
    )
    asked = policy(network)
    near = functional.mse_loss(
        torch.from_numpy(asked._past_images(large)).float(),
        torch.from_numpy(asked._past_images(small)).float(),
    )
    assert asked._past_images(large).shape == asked._past_images(small).shape
    assert near < 3000
