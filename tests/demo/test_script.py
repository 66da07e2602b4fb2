"""The exact answers of the demo engine, which load tests compute for themselves."""

from __future__ import annotations

import math
import struct

import pytest

from flm.demo import script


def test_the_answer_is_pinned() -> None:
    said = script.reply("demo", "hello world")
    assert said.text == (
        "demo heard: hello world cedar vale jade naïve quartz delta willow kelp Straße river ember xenon"
    )
    assert said.finish == "stop"


def test_max_tokens_cuts_at_a_word_with_finish_length() -> None:
    assert script.reply("demo", "hello world", 3) == script.Reply(("demo", " heard:", " hello"), "length")
    assert script.reply("demo", "hello world", 0) == script.Reply((), "length")


def test_as_many_tokens_as_there_are_is_no_cut() -> None:
    whole = script.reply("demo", "hello world")
    assert script.reply("demo", "hello world", len(whole.pieces)) == whole


def test_every_character_of_model_and_prompt_counts() -> None:
    long = "word " * 100
    texts = {script.reply(model, prompt).text for model in ("demo", "demp") for prompt in (long, long + "x", "", "é")}
    assert len(texts) == 8


def test_a_count_of_words_is_exact() -> None:
    assert [len(script.reply("demo", "hi", count=count).pieces) for count in (0, 1, 3, 500)] == [0, 1, 3, 500]


def test_stop_ends_before_the_earliest_mark() -> None:
    said = script.reply("demo", "hello world", stop=["zzz", "lo wor", "world"])
    assert (said.text, said.finish) == ("demo heard: hel", "stop")


def test_stop_beyond_the_cut_changes_nothing() -> None:
    assert script.reply("demo", "hello world", 3, stop=["world"]).finish == "length"


def test_an_embedding_is_a_unit_vector_exact_in_32_bits() -> None:
    vector = script.embedding("hello", 100)
    assert len(vector) == 100
    assert math.isclose(sum(value * value for value in vector), 1.0, rel_tol=1e-5)
    assert list(struct.unpack("<100f", struct.pack("<100f", *vector))) == vector
    assert vector[:16] != script.embedding("hellp", 16)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (
            {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}},
            {"city": "b", "n": 1},
        ),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "array", "items": {"type": "boolean"}}, [True]),
        ({"const": 4}, 4),
        ({}, "b"),
    ],
)
def test_a_schema_is_filled(schema: dict[str, object], value: object) -> None:
    assert script.example(schema, "a b") == value
