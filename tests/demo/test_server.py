"""The demo engine on a real socket: framing, bounds, scripted failures, and what a test can see of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from openai import APIError, OpenAI

from flm.demo import script
from tests.support.demo import Demo, demo_engine

DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def running() -> Iterator[Demo]:
    with demo_engine() as engine:
        yield engine


@pytest.fixture
def engine(running: Demo) -> Demo:
    running.clear()
    return running


def connect(engine: Demo) -> socket.socket:
    address = urlsplit(engine.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def chat(directives: str = "", *, stream: bool = True, prompt: str = "hello world") -> bytes:
    messages = [{"role": "system", "content": f"demo: {directives}"}, {"role": "user", "content": prompt}]
    body = json.dumps({"model": "demo", "stream": stream, "messages": messages}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        data = connection.recv(65536)
        assert data, received[-500:]
        received += data
    return received


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_one_connection_serves_one_request_after_the_other(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        for _ in range(3):
            connection.sendall(chat())
            assert DONE in until(connection, b"0\r\n\r\n")
    assert {one["connection"] for one in engine.requests()} == {engine.requests()[0]["connection"]}


def test_pipelined_requests_are_answered_in_order(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(b"".join(chat(stream=False, prompt=f"p{number}") for number in range(5)) + chat())
        answers = until(connection, b"0\r\n\r\n")
    places = [answers.find(b"heard: p%d" % number) for number in range(5)]
    assert places == sorted(places)
    assert -1 not in places


def test_too_many_pipelined_requests_are_refused(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("hold=x") + chat() * 20)
        assert until_closed(connection) == b""


def test_a_chunked_body_in_single_bytes(engine: Demo) -> None:
    body = b'{"model":"demo","messages":[{"role":"user","content":"hello world"}]}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with closing(connect(engine)) as connection:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(head + chunks)
        answer = until_closed(connection)
    text = json.loads(body_of(answer))["choices"][0]["message"]["content"]
    assert text == script.reply("demo", "hello world").text


def test_expect_continue_is_honoured(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        head, _, body = chat(stream=False).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert until(connection, b"}").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, b"431"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused_and_closed(engine: Demo, sent: bytes, status: bytes) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(sent)
        received = b""
        try:
            received = until_closed(connection)
        except ConnectionResetError:
            assert len(sent) > 60_000, "only unread bytes may turn the close into a reset"
        assert not received or received.startswith(b"HTTP/1.1 %b " % status)
    assert engine.request("GET", "/health")[0] == 200


def test_a_body_beyond_the_bound_is_refused(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(b"x" * 99_999_999)


def test_the_official_client_reads_the_exact_text(engine: Demo) -> None:
    client = OpenAI(api_key="caller", base_url=f"{engine.url}/v1", max_retries=0)
    with client:
        stream = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Grüße 東京"}], max_tokens=9, stream=True
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == script.reply("demo", "Grüße 東京", 9).text
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
        embedded = client.embeddings.create(model="demo", input=["a", "b"])
        assert [one.embedding for one in embedded.data] == [script.embedding("a"), script.embedding("b")]
    seen = dict(engine.requests("/v1/embeddings")[0]["headers"])
    assert seen["authorization"] == "Bearer caller"


def test_an_error_inside_the_stream(engine: Demo) -> None:
    client = OpenAI(api_key="caller", base_url=f"{engine.url}/v1", max_retries=0)
    with client:
        stream = client.chat.completions.create(
            model="demo",
            messages=[{"role": "system", "content": "demo: error=2"}],
            stream=True,
        )
        with pytest.raises(APIError, match="as it was told to"):
            for _ in stream:
                pass


@pytest.mark.parametrize("count", [0, 1, 300])
def test_cut_in_order_after_exactly_so_many_bytes(engine: Demo, count: int) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat(f"cut={count}"))
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(body_of(answer)) == count


def test_cut_before_the_head_sends_nothing(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("cut=-1"))
        assert until_closed(connection) == b""


def test_cut_with_a_reset(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("cut=300 end=rst"))
        with pytest.raises(ConnectionResetError):
            until_closed(connection)
    assert engine.requests()[0]["outcome"] == "failed"


def test_a_stall_keeps_the_connection_until_the_client_leaves(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("stall=10"))
        engine.wait("failed")
        assert engine.requests()[0]["bytes_sent"] > 10
        closed = engine.journal()["events"]["closed"]
    engine.wait("closed", closed + 2)  # ours, and the one that asked


def test_garbage_after_a_while(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("garbage=20"))
        answer = body_of(until_closed(connection))
    assert len(answer) == 20 + 1024
    assert answer[20:].startswith(b"\xff\xfe")


def test_a_held_answer_starts_when_it_is_released(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("hold=gate"))
        engine.wait("held")
        assert engine.requests()[0]["first_byte_at"] is None
        engine.release("gate")
        assert DONE in until(connection, b"0\r\n\r\n")


def test_a_stream_held_in_the_middle(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("hold=gate hold_at=3"))
        engine.wait("held")
        received = until(connection, b'"demo"},"logprobs":null,"finish_reason":null}]}\n\n\r\n')
        engine.release("gate")
        assert DONE in received + until(connection, b"0\r\n\r\n")


def test_who_leaves_is_noted_with_the_time(engine: Demo) -> None:
    connection = connect(engine)
    connection.sendall(chat("endless between=0.001"))
    assert connection.recv(1)
    left = time.monotonic()
    connection.close()
    engine.wait("cancelled")
    record = engine.requests()[0]
    assert record["outcome"] == "cancelled"
    assert 0 <= record["ended_at"] - left < 5


def test_an_endless_answer_to_one_who_does_not_read_waits(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("flood=1024"))
        engine.wait("first_byte")
        sizes: list[int] = []
        while len(sizes) < 3 or sizes[-1] != sizes[-2]:  # until nothing more fits into the kernel's buffers
            sizes.append(engine.requests()[0]["bytes_sent"])
    assert sizes[-1] < 64 << 20


def test_split_writes_change_no_byte(engine: Demo) -> None:
    answers = []
    for directives in ("words=4", "words=4 split=1"):
        with closing(connect(engine)) as connection:
            connection.sendall(chat(directives))
            answers.append(body_of(until(connection, b"0\r\n\r\n")))
    lines = [[line for line in answer.split(b"\n") if b"data" in line] for answer in answers]
    identity = [json.loads(one[0][6:])["id"].encode() for one in lines]
    times = [str(json.loads(one[0][6:])["created"]).encode() for one in lines]
    assert answers[0] == answers[1].replace(identity[1], identity[0]).replace(times[1], times[0])


def test_a_status_in_the_engines_own_shape_or_any_body(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("status=503"))
        answer = until(connection, b"}}")
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert json.loads(body_of(answer))["error"]["type"] == "server_error"
        connection.sendall(chat("status=500 body=" + script.quoted("<html> no")))
        assert body_of(until(connection, b"no")) == b"<html> no"


def test_a_fault_set_for_a_path(engine: Demo) -> None:
    engine.fault("/v1/models", "status=503")
    assert engine.request("GET", "/v1/models")[0] == 503
    assert engine.request("GET", "/health")[0] == 200
    engine.fault("/v1/models", "")
    assert engine.request("GET", "/v1/models")[0] == 200


def test_a_connection_that_is_dropped_unannounced(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("after=drop", stream=False))
        answer = until_closed(connection)
    assert b"Connection: close" not in answer
    assert body_of(answer).endswith(b"}")
    with closing(connect(engine)) as connection:
        connection.sendall(chat("after=close", stream=False))
        assert b"Connection: close\r\n" in until_closed(connection)


def test_a_wrong_directive_is_a_bad_request(engine: Demo) -> None:
    with closing(connect(engine)) as connection:
        connection.sendall(chat("cutt=3"))
        assert b"cutt" in until(connection, b"}}")


def test_idle_connections_are_closed() -> None:
    with demo_engine("openai", "--idle", "0.05") as engine, closing(connect(engine)) as connection:
        connection.sendall(chat(stream=False))
        assert until_closed(connection).endswith(b"}")


def test_the_controls_are_shut_unless_asked_for() -> None:
    from flm.demo.dialect import Request
    from flm.demo.registry import create
    from flm.demo.server import Server

    server = Server(create("openai", (), None, None))
    answer = server.answer(Request("GET", "/demo/journal", {}, {}, b"", 1, 0.0))
    assert answer.status == 404
    server.journal.received(1, 1, "POST", "/", [(b"authorization", b"Bearer secret")], b"a prompt")
    assert list(server.journal.records) == []
