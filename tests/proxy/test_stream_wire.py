"""Streams at the wire, for every dialect: what its engines were recorded to send, put on a socket in every odd way.

An engine here sends a recorded stream, or one bent in a way the format allows; the client's bytes must come out the
same. A dialect takes part by being there, with the recordings of the engines it recognises.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any

import msgspec
import pytest

from flm.engines.call import Endpoint
from flm.engines.registry import DIALECTS
from tests.proxy.harness import Client, World, engine, run
from tests.support.belonging import Recorded, recorded
from tests.support.engine import ScriptedEngine, Step, answer, bytewise, chunked, fin, receive, say

CHUNK_HEAD = b"transfer-encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"
LETTERS = "東京 naïve 🦊 µ"
FEATURES = (b"", b'"tool_calls"', b'"logprobs":{', b'"thinking"', b'"reasoning', b'"usage"', b'"index":1')
LONGEST_BYTEWISE = 12_000  # bytes of a recording that is sent byte by byte
CONTENT = re.compile(rb'("content": ?")(?=[^"\\])')
# What FLM chooses itself, new for each request.
OWN = re.compile(rb'"id":"(?:chatcmpl|call)[-_][^"]*"|"created":\d+|"request_id":"[^"]*"')


def _streams() -> list[Any]:
    """For each dialect one recorded, whole stream of each feature."""
    found: dict[str, Recorded] = {}
    for kind in sorted(DIALECTS):
        good = [
            one
            for one in recorded(kind)
            if one.exchange.status == 200 and one.call.peek.stream and one.call.endpoint is Endpoint.CHAT
            if _ends(one.exchange.body) and len(one.exchange.body) < LONGEST_BYTEWISE
        ]
        for feature in FEATURES:
            one = next((one for one in good if feature in one.exchange.body), None)
            if one is not None:
                found[one.id] = one
    return [pytest.param(one, id=name) for name, one in found.items()]


def _ends(body: bytes) -> bool:
    return b"data: [DONE]" in body or (not _events(body) and b'"done":true' in body)


def _events(body: bytes) -> bool:
    """Whether it is a stream of events; else of lines."""
    return not body.startswith(b"{")


STREAMS = _streams()
FIRST = {stream.values[0].kind: stream.values[0] for stream in reversed(STREAMS)}
EVENTS = [pytest.param(one, id=kind) for kind, one in sorted(FIRST.items()) if _events(one.exchange.body)]


def test_every_dialect_that_comes_with_flm_takes_part() -> None:
    assert set(FIRST) >= {"ollama", "llamacpp", "openai"}


def ask(one: Recorded, *script: Step, **settings: Any) -> Client:
    """The recorded request, through FLM, to an engine that follows the script once it has it."""
    seen: list[Client] = []

    async def test() -> None:
        async with ScriptedEngine([receive(), *script, fin()]) as scripted:
            world = World(engine(scripted.url, one.kind, "engine", ["some-model"]), **settings)
            body = msgspec.json.encode(dict(one.call.peek.fields))
            seen.append(await world.ask("POST", one.call.endpoint.value, body))
            await world.app.aclose()

    run(test())
    assert seen[0].complete
    return seen[0]


def head(one: Recorded) -> bytes:
    kind = b"content-type: " + one.exchange.headers[b"content-type"]
    return b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n" + CHUNK_HEAD + b"\r\n\r\n"


def whole(one: Recorded, body: bytes) -> Step:
    return say(head(one) + b"%x\r\n%s\r\n" % (len(body), body) + LAST_CHUNK)


def told(client: Client) -> bytes:
    """The client's bytes, but for what is another in each answer."""
    assert client.status == 200, client.body
    return OWN.sub(b"", client.body)


def objects(client: Client) -> list[dict[str, Any]]:
    return [json.loads(one[6:]) for one in client.events if one.startswith(b"data: {")]


def with_text(body: bytes, text: bytes) -> bytes:
    """The stream with `text` (in JSON) put before its first text."""
    assert CONTENT.search(body), body
    return CONTENT.sub(rb"\1" + text, body, count=1)


@pytest.mark.parametrize("one", STREAMS)
def test_bytes_that_come_one_by_one_are_the_same_stream(one: Recorded) -> None:
    body = one.exchange.body
    if CONTENT.search(body):
        body = with_text(body, LETTERS.encode())
    together = told(ask(one, whole(one, body)))
    framed = chunked(200, [body[at : at + 7] for at in range(0, len(body), 7)], b"content-type: x").partition(
        b"\r\n\r\n"
    )[2]
    assert told(ask(one, say(head(one)), bytewise(framed))) == together
    if LETTERS.encode() in body:
        assert LETTERS.encode() in together


@pytest.mark.parametrize("one", STREAMS)
def test_a_stream_has_one_id_one_end_and_the_usage_that_was_asked_for(one: Recorded) -> None:
    client = ask(one, whole(one, one.exchange.body))
    chunks = objects(client)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["created"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {one.call.peek.model}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert client.events[-1] == b"data: [DONE]"
    assert client.body.count(b"[DONE]") == 1
    finishes = Counter(choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"])
    assert finishes
    assert set(finishes.values()) == {1}
    usages = [chunk["choices"] for chunk in chunks if chunk.get("usage")]
    assert usages.count([]) == (1 if one.call.peek.include_usage else 0)
    running = b"continuous_usage_stats" in bytes(one.call.peek.fields.get("stream_options", b""))  # vLLM has it
    assert usages in ([], [[]]) or running
    roles = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["delta"].get("role")]
    if one.exchange.body.count(b'"role":"assistant"') == len(finishes) or not _events(one.exchange.body):
        assert Counter(roles) == Counter(list(finishes))


@pytest.mark.parametrize("one", FIRST.values(), ids=list(FIRST))
def test_a_line_of_100_kilobytes_passes(one: Recorded) -> None:
    text = b"long " * 20_000
    client = ask(one, whole(one, with_text(one.exchange.body, text)))
    assert text in client.body
    assert client.events[-1] == b"data: [DONE]"


@pytest.mark.parametrize("one", FIRST.values(), ids=list(FIRST))
def test_line_ends_of_two_bytes_are_line_ends(one: Recorded) -> None:
    together = told(ask(one, whole(one, one.exchange.body)))
    assert told(ask(one, whole(one, one.exchange.body.replace(b"\n", b"\r\n")))) == together


@pytest.mark.parametrize("one", EVENTS)
def test_comments_of_the_engine_pass_and_disturb_nothing(one: Recorded) -> None:
    together = told(ask(one, whole(one, one.exchange.body)))
    body = b": one\n\n" + one.exchange.body.replace(b"\n\n", b"\n\n: ping\n\n", 2)
    client = ask(one, whole(one, body))
    comments = [event for event in client.events if event.startswith(b":")]
    assert comments == [b": one", b": ping", b": ping"]
    assert b"".join(event + b"\n\n" for event in told(client).split(b"\n\n") if event and event[:1] != b":") == together


@pytest.mark.parametrize("one", EVENTS)
def test_an_event_of_several_lines_is_one_object(one: Recorded) -> None:
    expected = objects(ask(one, whole(one, one.exchange.body)))
    lines = one.exchange.body.replace(b"data: {", b"data: {\ndata: ")
    found = objects_of_lines(ask(one, whole(one, b"event: message\n" + lines)))
    for chunk in (*expected, *found):
        chunk.pop("id")
        chunk.pop("created")
    assert found == expected


def objects_of_lines(client: Client) -> list[dict[str, Any]]:
    """As a client reads them that joins the data lines of an event."""
    found = []
    for event in client.events:
        data = b"\n".join(line[6:] for line in event.split(b"\n") if line.startswith(b"data: "))
        if data.startswith(b"{"):
            found.append(json.loads(data))
    return found


def first_half(body: bytes) -> bytes:
    """The stream up to the end of an event, or line, in its middle: nothing has ended it."""
    mark = b"\n\n" if _events(body) else b"\n"
    parts = body.split(mark)
    return mark.join(parts[:2]) + mark


ENDINGS = {
    "ends early": b"",
    "reports an error": b'data: {"error":{"message":"boom","type":"x","code":500}}\n\ndata: [DONE]\n\n',
    "sends no JSON": b"data: {boom\n\n",
}
LINES = {"ends early": b"", "reports an error": b'{"error":"boom"}\n', "sends no JSON": b"{boom\n"}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("one", FIRST.values(), ids=list(FIRST))
def test_what_goes_wrong_inside_is_one_event_and_the_end(one: Recorded, ending: str) -> None:
    body = first_half(one.exchange.body)
    client = ask(one, whole(one, body + (ENDINGS if _events(body) else LINES)[ending]))
    assert client.status == 200
    found = [chunk["error"] for chunk in objects(client) if "error" in chunk]
    assert len(found) == 1
    assert set(found[0]) == {"message", "type", "param", "code", "request_id"}
    assert client.events[-1].startswith(b'data: {"error":{')
    assert b"data: [DONE]" not in client.body
    said = [choice for chunk in objects(client) for choice in chunk.get("choices", ())]
    assert said
    assert not any(choice["finish_reason"] for choice in said)


@pytest.mark.parametrize("one", FIRST.values(), ids=list(FIRST))
def test_an_error_instead_of_a_stream_is_a_status(one: Recorded) -> None:
    error = b'{"error":{"message":"boom"}}' if _events(one.exchange.body) else b'{"error":"boom"}'
    client = ask(one, say(answer(500, error, b"content-type: application/json")))
    assert (client.status, client.code) == (502, "engine_error")
    assert "boom" in client.error["message"]


@pytest.mark.parametrize("one", FIRST.values(), ids=list(FIRST))
def test_a_client_that_does_not_read_slows_the_engine_and_loses_nothing(one: Recorded) -> None:
    mark = b"\n\n" if _events(one.exchange.body) else b"\n"
    parts = [part + mark for part in one.exchange.body.split(mark) if part]
    texts = [part for part in parts if CONTENT.search(part)]
    count, padding = 400, b"x" * 65_536  # 26 MB: more than the buffers of all sockets

    def numbered(number: int) -> bytes:
        return with_text(texts[0], b"<%d>" % number + padding)

    async def test() -> None:
        body = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in map(numbered, range(count))]
        ending = b"".join(parts[parts.index(texts[0]) + 1 :])
        last = b"%x\r\n%s\r\n" % (len(ending), ending) + LAST_CHUNK
        script = [receive(), say(head(one)), *map(say, body), say(last), fin()]
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url, one.kind, "engine", ["some-model"]))
            client = world.client("POST", one.call.endpoint.value, body=msgspec.json.encode(dict(one.call.peek.fields)))
            client.reading.clear()
            task = client.start()
            peer = await scripted.peer(0)
            await settled(peer)
            assert peer.sent < count * len(padding) // 2
            client.reading.set()
            await task
            found = re.findall(rb"<(\d+)>", client.body)
            assert [int(number) for number in found] == list(range(count))
            assert client.events[-1] == b"data: [DONE]"
            await world.app.aclose()

    run(test())


async def settled(peer: Any) -> None:
    """Until the engine's kernel takes no more: nothing was sent while the loop turned a thousand times."""
    sent = -1
    while peer.sent != sent or not sent:
        sent = peer.sent
        for _ in range(1000):
            await asyncio.sleep(0)
