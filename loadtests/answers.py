"""Is this answer exactly the one that was asked for? One pure check, used by every load test.

Knows the OpenAI wire format as a client sees it, and `flm.demo.script`, which says what the demo engine answers.
"""

from __future__ import annotations

import json

from flm.demo import script
from loadtests.stage import ENGINE_MODEL, MODEL


def prompt_of(number: int) -> str:
    """The user's message of request `number`: different for each, with characters of several bytes."""
    return f"Request {number} asks: does every byte come through, {number * 7919 % 1009} 東京 and 🦊 included?"


def body_of(number: int, *, stream: bool, system: str = "") -> bytes:
    """A chat request. `system` may hold a directive for the demo engine: that is how an error is planted."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt_of(number)})
    return json.dumps({"model": MODEL, "stream": stream, "messages": messages}).encode()


def expected(number: int) -> str:
    return script.reply(ENGINE_MODEL, prompt_of(number)).text


def stream_fault(body: bytes, number: int) -> str | None:
    """What is wrong with the whole body of a streamed answer to request `number`; None if nothing is."""
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if events.count(b"[DONE]") != 1 or events[-1] != b"[DONE]":
        return f"[DONE] stands {events.count(b'[DONE]')} times, the last event is {events[-1:]}"
    try:
        chunks = [json.loads(event) for event in events[:-1]]
        return _chunks_fault(chunks, number)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"not a stream of chunks: {error!r}"


def _chunks_fault(chunks: list[dict[str, object]], number: int) -> str | None:
    for name in ("id", "created", "model"):
        if len({str(chunk[name]) for chunk in chunks}) != 1:
            return f"`{name}` changes within the stream"
    if chunks[0]["model"] != MODEL:
        return f"`model` is {chunks[0]['model']!r}"
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]  # type: ignore[index]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    if text != expected(number):
        return f"the text is {text!r} instead of {expected(number)!r}"
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return None if finishes == ["stop"] else f"finish reasons are {finishes}"


def whole_fault(body: bytes, number: int) -> str | None:
    """The same for an answer that is not streamed."""
    try:
        answer = json.loads(body)
        text = answer["choices"][0]["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"not a chat completion: {error!r}: {body[:200]!r}"
    if answer["model"] != MODEL:
        return f"`model` is {answer['model']!r}"
    return None if text == expected(number) else f"the text is {text!r} instead of {expected(number)!r}"
