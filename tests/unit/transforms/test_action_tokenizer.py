import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from tests.builders import fast
from vlatool.datasets.samples.profile import read_profile
from vlatool.errors import DataError
from vlatool.transforms.action_tokenizer import (
    ActionTokenizer,
    action_quality,
    byte_characters,
    coefficient_range,
    fit_tokenizer,
)


def guide_ids() -> list[int]:
    """The guide's sample as ids of `byte_tokenizer`."""
    return list(
        "".join(
            chr(coefficient - fast.LOWEST) for coefficient in fast.guide_coefficients().ravel()
        ).encode()
    )


def fitted(chunks: np.ndarray, vocab_size: int = 400) -> ActionTokenizer:
    lowest, _ = coefficient_range(10.0, chunks)
    return fit_tokenizer(
        chunks, scale=10.0, vocab_size=vocab_size, lowest=lowest, alphabet=byte_characters()
    )


@pytest.fixture(scope="module")
def tokenizer() -> ActionTokenizer:
    return fitted(fast.smooth_chunks())


def error_of(work: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(DataError) as caught:
        work()
    assert caught.value.hint
    return caught.value.code, caught.value.exit_code


def test_published_coefficients_decode_to_the_published_actions_and_back() -> None:
    profile = read_profile("libero")
    chunks, _ = fast.byte_tokenizer().decode([guide_ids()], fast.STEPS, fast.WIDTH)
    actions = profile.denormalize(chunks)

    first = [0.0191, 0.0041, -0.0006, -0.0054, -0.0055, 0.0045, -1.0]
    last = [-0.0045, -0.7180, -0.1270, 0.0631, 0.0168, 0.0045, -1.0]
    np.testing.assert_allclose(actions[0, [0, -1]].round(4), [first, last], rtol=1e-6)
    result = fast.byte_tokenizer().coefficients(profile.normalize(actions))
    np.testing.assert_array_equal(result, fast.guide_coefficients()[None])


@pytest.mark.parametrize(
    ("gripper", "way", "expected"),
    [("raw", 1, 40), ("raw", -1, -40), ("normalised", 1, 42), ("normalised", -1, -38)],
)
def test_a_padding_chunk_has_the_published_gripper_coefficient(
    gripper: str, way: float, expected: int
) -> None:
    rows = np.zeros((1, fast.STEPS, fast.WIDTH))
    rows[..., -1] = way
    profile = read_profile("libero", "raw" if gripper == "raw" else "normalised")

    result = fast.byte_tokenizer().coefficients(profile.normalize(rows))[0]

    assert result[0, -1] == expected
    assert not result[1:].any()


def test_zeros_are_encoded_as_the_distance_of_the_lowest_and_lower_ones_counted() -> None:
    (ids,) = fast.byte_tokenizer().encode(np.zeros((1, fast.STEPS, fast.WIDTH)))
    assert ids == list((chr(-fast.LOWEST) * fast.STEPS * fast.WIDTH).encode())

    chunks = np.array([[[0.0, -3.0]], [[0.0, 1.0]]])
    encoded = ActionTokenizer(fast.byte_document(), 10.0, -20).encode_counted(chunks)
    assert encoded.clamped.tolist() == [1, 0]
    assert encoded.ids[0] == [20, 0]


@pytest.mark.parametrize(("scale", "expected"), [(0.2, 0), (0.6, 2), (1.0, 2), (1.4, 4)])
def test_halves_are_rounded_to_even(scale: float, expected: int) -> None:
    chunks = np.full((1, fast.STEPS, 1), 0.625)  # a coefficient of exactly 2.5

    assert ActionTokenizer(fast.byte_document(), scale, 0).coefficients(chunks)[0, 0] == [expected]


def test_each_byte_has_the_character_of_the_published_encoder() -> None:
    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(0x100)))
    encoded = "".join(part for part, _ in level.pre_tokenize_str(text))
    assert encoded == "".join(byte_characters()[byte] for byte in text.encode())


@pytest.mark.parametrize(
    "chunks",
    [fast.smooth_chunks(), np.random.default_rng(3).normal(100, 20, (5, 1, 6))],
    ids=["fitted", "unlike the fitted"],
)
def test_decoded_chunks_are_exact_up_to_rounding(
    tokenizer: ActionTokenizer, chunks: np.ndarray
) -> None:
    back, problems = tokenizer.decode(tokenizer.encode(chunks), *chunks.shape[1:])

    assert problems == [None] * len(chunks)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(tokenizer.coefficients(back), tokenizer.coefficients(chunks))


def test_a_fitted_vocabulary_shortens_is_picklable_and_the_same_each_time(
    tokenizer: ActionTokenizer,
) -> None:
    chunks = fast.smooth_chunks()
    quality = action_quality(tokenizer, chunks)
    assert quality.lengths.mean() < fast.STEPS * fast.WIDTH / 2
    assert (quality.exact, quality.in_range) == (1, 1)
    assert fitted(chunks).document == tokenizer.document
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert copy.encode(chunks) == tokenizer.encode(chunks)


def test_ids_of_a_chunk_depend_neither_on_its_neighbors_nor_on_an_earlier_shape(
    tokenizer: ActionTokenizer,
) -> None:
    chunks = fast.smooth_chunks()
    before = tokenizer.encode(chunks)

    assert before == [tokenizer.encode(chunk[None])[0] for chunk in chunks]
    tokenizer.encode(np.ones((2, 4, 3)))
    assert tokenizer.encode(chunks) == before
    assert tokenizer.encode(np.zeros((0, fast.STEPS, fast.WIDTH))) == []
    assert tokenizer.decode([], fast.STEPS, fast.WIDTH)[1] == []


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([256], "256"),
        ([-1], "-1"),
        ([0xC3], "complete"),
        ([], "0 coefficients"),
        ([65] * 5, "5 coefficients"),
    ],
)
def test_invalid_ids_are_reported(ids: list[int], reason: str) -> None:
    chunks, problems = fast.byte_tokenizer().decode([ids, [65, 66]], 1, 2)

    assert reason in str(problems[0])
    assert problems[1] is None
    assert np.isnan(chunks[0]).all()
    assert np.isfinite(chunks[1]).all()


def test_an_id_that_the_vocabulary_skips_is_reported() -> None:
    document = json.loads(fast.byte_document())
    document["model"]["vocab"]["ab"] = 300

    tokenizer = ActionTokenizer(json.dumps(document), 10.0, 0)

    assert tokenizer.decode([[299]], 1, 1)[1] != [None]
    assert tokenizer.decode([[300]], 1, 2)[1] == [None]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    chunks = np.zeros((2, fast.STEPS, fast.WIDTH))
    chunks[1, 3, 2] = value

    with pytest.raises(DataError) as caught:
        fast.byte_tokenizer().encode(chunks)

    assert (caught.value.code, caught.value.exit_code) == ("data.not_finite", 3)
    assert caught.value.details == {"chunk": 1, "row": 3, "dimension": 2}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (5_600.0, "data.not_finite"),  # a surrogate
        (120_000.0, "data.not_finite"),  # above the last character
        (1e30, "data.not_finite"),
    ],
)
def test_values_without_a_character_are_refused(value: float, code: str) -> None:
    chunks = np.full((1, 1, 1), value)

    assert error_of(lambda: fast.byte_tokenizer().encode(chunks)) == (code, 3)


@pytest.mark.parametrize("character", [0xD7FF, 0xE000])
def test_characters_beside_the_surrogates_are_encoded(character: int) -> None:
    tokenizer = fast.byte_tokenizer()
    value = (character + tokenizer.min_token) / tokenizer.scale
    chunks, problems = tokenizer.decode(tokenizer.encode(np.full((1, 1, 1), value)), 1, 1)
    assert (float(chunks[0, 0, 0]), problems) == (pytest.approx(value), [None])


def test_a_coefficient_that_the_vocabulary_cannot_encode_is_refused() -> None:
    few = ActionTokenizer(fast.byte_document(byte_characters()[:60]), 10.0, 0)

    assert few.encode(np.full((1, 1, 1), 5.0)) == [[50]]
    code = error_of(lambda: few.encode(np.full((1, 1, 1), 6.5)))
    assert code == ("data.not_finite", 3)


def test_the_digest_is_that_of_the_ids_not_of_the_layout(tokenizer: ActionTokenizer) -> None:
    document = json.loads(tokenizer.document)
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    document["version"] = "another"

    same = ActionTokenizer(json.dumps(document, sort_keys=True), 10, tokenizer.min_token)

    assert same.digest == tokenizer.digest
    assert ActionTokenizer(tokenizer.document, 10, 0).digest != tokenizer.digest
