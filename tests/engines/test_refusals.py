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
