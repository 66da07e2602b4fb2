"""What an engine's error says, in whatever paper it comes, and that no paper takes long to unwrap."""

from __future__ import annotations

import json
import time

import pytest

from flm.engines.refusals import MAX_MESSAGE, refusal, reported

GO = "llama-server chat error: map[code:500 message:Failed to parse [1] input type:server_error]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GO, "Failed to parse [1] input"),
        ("map[code:400 message:no type here]", "no type here"),
        ("map[code:400 message:cut off", "cut off"),
        ("map[code:4000 message:no status]", "map[code:4000 message:no status]"),
        ("map[message:other order code:500]", "map[message:other order code:500]"),
        ("a map[ of it", "a map[ of it"),
    ],
)
def test_an_error_printed_as_a_go_map(text: str, message: str) -> None:
    assert refusal(500, json.dumps({"error": text}).encode(), "messages").message == message


MISTAKES = [
    ('Failed to parse tools: Unsupported tool type: {"type":"custom"}', "tools"),
    ("Failed to parse messages: Missing tool call name: {}", "messages"),
    ("Failed to parse tool call arguments as JSON: [json.exception.parse_error.101]", "messages"),
    ("invalid JSON schema in format", "response_format"),
]


@pytest.mark.parametrize(("message", "param"), MISTAKES)
def test_a_mistake_of_the_caller_is_no_failure_of_the_engine(message: str, param: str) -> None:
    """llama-server and some Ollamas answer 500 to them."""
    wrapped = {"error": {"code": 500, "message": message, "type": "server_error"}}
    for error in (wrapped, {"error": message}, {"error": f"x: map[code:500 message:{message} type:server_error]"}):
        found = refusal(500, json.dumps(error).encode(), "messages")
        assert (found.status, found.code, found.param, found.message) == (400, "invalid_request", param, message)
    quoted = refusal(500, json.dumps({"error": f"it wrote: {message}"}).encode(), "messages")
    assert quoted.status == 502, "an engine's answer may hold the words"


@pytest.mark.parametrize("code", ["", "a b", "a" * 65, "k\u00e9y", "a\n", "<b>", "a/b", "a:b", "123"])
def test_a_code_that_is_no_name_is_dropped(code: str) -> None:
    body = {"error": {"message": "odd", "code": code}}
    for status, own in ((400, "invalid_request"), (404, "not_found"), (500, "engine_error")):
        assert refusal(status, json.dumps(body).encode(), "messages").code == own


def test_a_code_that_is_a_name_is_kept() -> None:
    body = {"error": {"message": "odd", "code": "rate.limit_reached-2"}}
    assert refusal(400, json.dumps(body).encode(), "messages").code == "rate.limit_reached-2"


@pytest.mark.parametrize(("param", "kept"), [("p" * 200, True), ("p" * 201, False), ("a\nb", False), ("a[0].b", True)])
def test_a_param_is_short_and_printable_or_none(param: str, kept: bool) -> None:
    body = {"error": {"message": "odd", "param": param}}
    assert refusal(400, json.dumps(body).encode(), "messages").param == (param if kept else None)


@pytest.mark.parametrize("times", [1_000, 40_000])
@pytest.mark.parametrize(
    "piece", ["map[ code:123 message:", "map[", "code:123 ", "message: type:x ", "map[code:500 message:x type:", "]"]
)
def test_no_text_takes_long(piece: str, times: int) -> None:
    """Cost grows with the length at most: callers can make some engines quote them."""
    text = json.dumps(piece * times)
    began = time.process_time()
    error = refusal(400, b'{"error":%s}' % text.encode(), "messages")
    reported(text.encode(), "messages")
    assert time.process_time() - began < 1
    assert len(error.message) <= MAX_MESSAGE
