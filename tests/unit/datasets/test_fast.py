import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.fast import LOWEST, byte_document, byte_tokenizer, smooth_chunks
from vlatool.datasets.fast import layout as fast
from vlatool.errors import DataError

PUBLISHED = {
    "action_dim": None,
    "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
    "min_token": LOWEST,
    "processor_class": "UniversalActionProcessor",
    "scale": 10,
    "time_horizon": None,
    "vocab_size": 2048,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fast.write_fast(tmp_path, byte_tokenizer(), vocab_size=2048)
    return tmp_path


def error_of(folder: Path) -> tuple[str, int]:
    with pytest.raises(DataError) as caught:
        fast.read_fast(folder)
    assert caught.value.hint
    return caught.value.code, caught.value.exit_code


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_written_files_have_the_published_names_and_keys_and_are_read_back(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(fast.NAMES)
    assert json.loads((folder / fast.PROCESSOR_NAME).read_text()) == PUBLISHED
    assert fast.read_fast(folder) == byte_tokenizer()


def test_code_in_the_folder_is_listed_and_never_run(folder: Path) -> None:
    (folder / fast.CODE_NAME).write_text(f"open({str(folder / 'ran')!r}, 'w')")

    assert fast.read_fast(folder) == byte_tokenizer()
    assert fast.ignored_code(folder) == [fast.CODE_NAME]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (fast.PROCESSOR_NAME, {"processor_class": "OtherProcessor"}),
        (fast.PROCESSOR_NAME, {"auto_map": {"AutoProcessor": "other.OtherProcessor"}}),
        (fast.PROCESSOR_NAME, {"auto_map": "other.OtherProcessor"}),
        (fast.TOKENIZER_CONFIG_NAME, {"auto_map": {"AutoTokenizer": ["other.Tokenizer", None]}}),
    ],
)
def test_a_folder_that_needs_other_code_is_refused(
    folder: Path, name: str, changes: dict[str, Any]
) -> None:
    change(folder / name, **changes)

    assert error_of(folder) == ("data.unsafe", 3)


def test_the_class_may_name_its_repository_and_the_digest_changes_with_the_rounding(
    folder: Path,
) -> None:
    name = "owner/fast--processing_action_tokenizer.UniversalActionProcessor"
    change(folder / fast.PROCESSOR_NAME, auto_map={"AutoProcessor": name})
    assert fast.read_fast(folder) == byte_tokenizer()

    before = fast.fast_digest(folder)
    change(folder / fast.PROCESSOR_NAME, scale=20)
    assert fast.fast_digest(folder) != before


@pytest.mark.parametrize("name", [fast.PROCESSOR_NAME, fast.TOKENIZER_NAME])
def test_a_folder_with_a_missing_or_damaged_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for damaged in (data[: len(data) // 2], b"\xff" + data):
        (folder / name).write_bytes(damaged)
        assert error_of(folder) == ("data.broken", 3)
    (folder / name).unlink()
    assert error_of(folder) == ("data.no_source", 3)


@pytest.mark.parametrize("key", ["scale", "vocab_size", "min_token"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    content = {name: entry for name, entry in PUBLISHED.items() if name != key}
    (folder / fast.PROCESSOR_NAME).write_text(json.dumps(content))

    with pytest.raises(DataError, match=key) as caught:
        fast.read_fast(folder)

    assert caught.value.code == "data.broken"


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0},
        {"scale": "10"},
        {"scale": True},
        {"vocab_size": 0},
        {"vocab_size": 2**40},
        {"vocab_size": 100},  # fewer than tokenizer.json has
        {"min_token": 1.5},
        {"min_token": None},
        {"min_token": -(2**60)},
    ],
)
def test_a_wrong_value_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    change(folder / fast.PROCESSOR_NAME, **changes)

    assert error_of(folder) == ("data.broken", 3)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(byte_document()).items() if name != key}


def with_model(**changes: Any) -> dict[str, Any]:
    document = json.loads(byte_document())
    return {**document, "model": {**document["model"], **changes}}


def with_level(**changes: Any) -> dict[str, Any]:
    document = json.loads(byte_document())
    return {**document, "pre_tokenizer": {**document["pre_tokenizer"], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        [],
        without("model"),
        without("pre_tokenizer"),
        without("decoder"),
        {**without(""), "normalizer": {"type": "Lowercase"}},
        {**without(""), "truncation": {"max_length": 3}},
        {**without(""), "post_processor": {"type": "BertProcessing"}},
        {**without(""), "added_tokens": [{"id": 300, "content": "<s>"}]},
        with_level(add_prefix_space=True),
        with_level(type="Whitespace"),
        with_level(use_regex="no"),
        with_model(type="WordPiece"),
        with_model(dropout=0.5),
        with_model(unk_token="?"),
        with_model(byte_fallback=True),
        with_model(vocab={}),
        with_model(vocab={"a": 0, "b": 0}),
        with_model(vocab={"a": -1}),
        with_model(vocab={"a": "0"}),
        with_model(vocab={"a": 2**31}),
        with_model(merges="a b"),
        with_model(merges=["ab"]),
        with_model(merges=[["a", 1]]),
        with_model(merges=[["a", "zzz"]]),
        with_model(merges=[["a", "b"]]),  # the merged token is not in the vocabulary
    ],
)
def test_an_unsupported_tokenizer_is_refused(folder: Path, content: Any) -> None:
    (folder / fast.TOKENIZER_NAME).write_text(json.dumps(content))

    assert error_of(folder) == ("data.broken", 3)


def test_two_files_suffice_to_encode(folder: Path) -> None:
    for name in set(fast.NAMES) - {fast.PROCESSOR_NAME, fast.TOKENIZER_NAME}:
        (folder / name).unlink()

    chunks = smooth_chunks()[:2]
    assert fast.read_fast(folder).encode(chunks) == byte_tokenizer().encode(chunks)
    assert np.array_equal(
        fast.read_fast(folder).decode(byte_tokenizer().encode(chunks), 16, 7)[1], [None] * 2
    )
