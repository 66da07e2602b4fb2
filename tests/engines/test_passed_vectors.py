"""Embeddings of engines that speak OpenAI's format: as many as the inputs, in their order, packed as asked."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.call import Call, Endpoint
from flm.engines.registry import DIALECTS
from tests.support.translating import CALLER_MODEL, Outcome, call, every_way, outcome

OPENAI = DIALECTS["openai"]
USAGE = {"prompt_tokens": 1, "total_tokens": 1}


def wanted(**fields: Any) -> Call:
    return call({"input": ["a", "b"], **fields}, endpoint=Endpoint.EMBEDDINGS)


def item(index: int, *vector: float) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": list(vector)}


def answered(data: Any, **fields: Any) -> Outcome:
    body = json.dumps({"object": "list", "data": data, "model": "m", "usage": fields.pop("usage", USAGE)}).encode()
    return every_way(OPENAI, wanted(**fields), 200, {}, body)


def read(data: Any, **fields: Any) -> dict[str, Any]:
    found = answered(data, **fields)
    assert found.error is None, found
    answer: dict[str, Any] = json.loads(found.data)
    assert answer["model"] == CALLER_MODEL
    return answer


def packed(*vector: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def test_what_is_right_passes_byte_for_byte() -> None:
    body = b'{"data": [ {"index":0,"embedding":[1.50, 2e0]},{"index":1,"embedding":[3]} ],"model":"m","usage":{"a":1}}'
    found = every_way(OPENAI, wanted(), 200, {}, body)
    assert found.data == body.replace(b'"m"', b'"%s"' % CALLER_MODEL.encode())


def test_vectors_out_of_order_are_put_in_order() -> None:
    answer = read([item(1, 2.0), item(0, 1.0)])
    assert [(each["index"], each["embedding"]) for each in answer["data"]] == [(0, [1.0]), (1, [2.0])]


def test_vectors_without_numbers_are_numbered() -> None:
    answer = read([{"embedding": [1]}, {"embedding": [2]}])
    assert [(each["index"], each["embedding"]) for each in answer["data"]] == [(0, [1]), (1, [2])]


@pytest.mark.parametrize("usage", [None, {}])
def test_usage_is_always_there(usage: Any) -> None:
    assert read([item(0, 1), item(1, 2)], usage=usage)["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    "data",
    [
        [],
        [item(0, 1)],
        [item(0, 1), item(1, 2), item(2, 3)],
        [item(0, 1), item(0, 2)],
        [item(1, 1), item(2, 2)],
        [item(0, 1), {"embedding": [1]}],
        [item(0, 1), {"index": 1}],
        [item(0, 1), {"index": 1, "embedding": None}],
        [item(0, 1), {"index": "1", "embedding": [1]}],
        {},
    ],
)
def test_what_does_not_fit_the_inputs(data: Any) -> None:
    found = answered(data)
    assert found.data == b""
    assert found.error is not None
    assert found.error[:2] == (502, "engine_protocol_error")


@pytest.mark.parametrize(
    ("input_", "count"), [("a", 1), (["a"], 1), (["a", "b", ""], 3), ([1, 2, 3], 1), ([[1], [2, 3]], 2)]
)
def test_how_many_are_expected(input_: Any, count: int) -> None:
    assert len(read([item(index, 1) for index in range(count)], input=input_)["data"]) == count
    assert answered([item(index, 1) for index in range(count + 1)], input=input_).error is not None


@given(st.permutations(range(4)), st.booleans(), st.booleans())
def test_any_order_and_either_format_become_what_was_asked(order: list[int], floats: bool, loose: bool) -> None:
    data = [{"index": n, "embedding": [n, 0.5] if loose else packed(n, 0.5)} for n in order]
    answer = read(data, input=["a", "b", "c", "d"], encoding_format="float" if floats else "base64")
    expected: list[Any] = [[n, 0.5] if floats else packed(n, 0.5) for n in range(4)]
    assert [each["embedding"] for each in answer["data"]] == expected


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_dimensions_an_engine_took_no_notice_of_are_an_error(encoding_format: str) -> None:
    data = [item(0, 1, 2), {"index": 1, "embedding": packed(1, 2)}]
    assert len(read(data, dimensions=2, encoding_format=encoding_format)["data"]) == 2
    error = answered(data, dimensions=1, encoding_format=encoding_format).error
    assert error is not None
    assert (error[0], error[1], error[3]) == (400, "unsupported_parameter", "dimensions")


def test_an_error_in_an_answer_of_200() -> None:
    found = outcome(OPENAI.begin(wanted()), 200, {}, [b'{"error":"no such thing"}'])
    assert found.error is not None
    assert "no such thing" in found.error[2]
