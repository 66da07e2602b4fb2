"""Text completions: what a request must look like, and what is written."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.completion_choice import Logprobs as ClientLogprobs

from flm.errors import RequestError
from flm.wire.chat import parameters
from flm.wire.chunks import Logprob, TopLogprob, usage
from flm.wire.completions import CompletionParameters, CompletionWriter, LogprobWriter, check_bounds, completion

Raw = msgspec.Raw


def wanted(**fields: Any) -> CompletionParameters:
    found = parameters({name: Raw(json.dumps(value).encode()) for name, value in fields.items()}, CompletionParameters)
    check_bounds(found)
    return found


def test_every_field_is_read() -> None:
    every: dict[str, Any] = {
        "prompt": "a", "suffix": "b", "max_tokens": 5, "temperature": 0.5, "top_p": 1, "n": 2, "best_of": 3,
        "echo": True, "logprobs": 0, "stop": ["x"], "seed": -1, "presence_penalty": 1, "frequency_penalty": -1,
        "logit_bias": {"1": 2}, "user": "u",
    }  # fmt: skip
    assert set(every) == set(CompletionParameters.__struct_fields__)
    found = wanted(**every)
    assert all(getattr(found, name) is not None for name in every)
    assert wanted(prompt="a", **dict.fromkeys(set(every) - {"prompt"})) == wanted(prompt="a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": "a", "suffix": 1}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1, "echo": True}, "max_tokens"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": -1}, "logprobs"),
        ({"prompt": "a", "echo": "yes"}, "echo"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ],
)
def test_what_is_wrong(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        wanted(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_request", param)


def test_no_token_at_all_only_with_echo() -> None:
    assert wanted(prompt="a", max_tokens=0, echo=True).max_tokens == 0


def chunk(event: bytes) -> Completion:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    parsed = json.loads(event[6:])
    for choice in parsed["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"  # the client's type has no word for "not yet"
    return Completion.model_validate(parsed, strict=True)


@pytest.mark.parametrize("include_usage", [False, True])
def test_chunks(include_usage: bool) -> None:
    writer = CompletionWriter("cmpl-1", 5, "m", include_usage=include_usage)
    text = chunk(writer.text(b'"a\\u00e9"'))
    assert (text.id, text.object, text.created, text.model) == ("cmpl-1", "text_completion", 5, "m")
    (choice,) = text.choices
    assert (choice.text, choice.index, choice.logprobs) == ("a\u00e9", 0, None)
    assert json.loads(writer.text(b'""')[6:])["choices"][0]["finish_reason"] is None
    assert ("usage" in json.loads(writer.text(b'""')[6:])) is include_usage
    (end,) = chunk(writer.finish("length")).choices
    assert (end.text, end.finish_reason) == ("", "length")
    counts = json.loads(writer.usage(usage(3, 4, 1))[6:])
    assert counts["choices"] == []
    assert counts["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1}
    }  # fmt: skip


def test_a_whole_answer() -> None:
    body = completion("cmpl-1", 5, "m", b'"Hi"', "stop", usage(1, 2, None), None)
    found = Completion.model_validate(json.loads(body), strict=True)
    assert found.choices[0].text == "Hi"
    assert found.usage is not None
    assert found.usage.total_tokens == 3


TOKENS = st.lists(st.builds(Logprob, st.text(max_size=5), st.floats(-10, 0)), max_size=8)


@given(st.lists(TOKENS, max_size=4))
def test_offsets_run_through_the_text(pieces: list[list[Logprob]]) -> None:
    writer = LogprobWriter(1)
    text, offsets = "", []
    for piece in pieces:
        found = writer.next(piece)
        ClientLogprobs.model_validate(msgspec.to_builtins(found), strict=True)
        offsets += found.text_offset
        for token, offset in zip(found.tokens, found.text_offset, strict=True):
            assert len(text) == offset
            text += token
    assert offsets == sorted(offsets)


def test_alternatives_hold_the_token_that_was_taken() -> None:
    token = Logprob("a", -1.0, None, [TopLogprob("b", -0.5)])
    assert LogprobWriter(1).next([token]).top_logprobs == [{"a": -1.0, "b": -0.5}]
    assert LogprobWriter(0).next([token]).top_logprobs is None
