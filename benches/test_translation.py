"""What translating costs: per chunk of a stream, and per request on the way in.

Each round feeds a whole recorded-like stream of 1000 chunks, so a chunk's share is a thousandth of the time shown.
"""

from __future__ import annotations

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flm.engines.base import Dialect
from flm.engines.call import Call, Endpoint
from flm.engines.registry import DIALECTS
from flm.wire.openai import peek

CHUNKS = 1000
REQUEST = {"model": "flm://engine/model", "messages": [{"role": "user", "content": "Say hello."}], "stream": True}
CALL = Call(
    Endpoint.CHAT, peek(json.dumps(REQUEST).encode()), "model", response_id="chatcmpl-1700000000000-0", created=1
)


def native_stream() -> list[bytes]:
    line = (
        b'{"model":"scripted","created_at":"2026-11-23T21:39:12.597507979Z",'
        b'"message":{"role":"assistant","content":" word"},"done":false}\n'
    )
    last = (
        b'{"model":"scripted","created_at":"2026-11-23T21:39:12.597507979Z","message":{"role":"assistant","content":""},'
        b'"done":true,"done_reason":"stop","prompt_eval_count":26,"eval_count":7}\n'
    )
    return [line] * CHUNKS + [last]


def openai_stream() -> list[bytes]:
    chunk = (
        b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" word"}}],"created":1795361334,'
        b'"id":"chatcmpl-KWR5Y7OpjpGQhtzGlSe508N7eilp1zda","model":"tiny-llama","system_fingerprint":"b1-0c1e570",'
        b'"object":"chat.completion.chunk"}\n\n'
    )
    return [chunk] * CHUNKS + [b"data: [DONE]\n\n"]


def translate(dialect: Dialect, pieces: list[bytes]) -> bytes:
    translation = dialect.begin(CALL)
    translation.head(200, {})
    out = b""
    for piece in pieces:
        out = translation.feed(piece)
    assert translation.complete
    return out


STREAMS = {"ollama": native_stream(), "llamacpp": openai_stream(), "openai": openai_stream()}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_chunk_by_chunk(benchmark: BenchmarkFixture, kind: str) -> None:
    assert benchmark(translate, DIALECTS[kind], STREAMS[kind]).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_in_large_reads(benchmark: BenchmarkFixture, kind: str) -> None:
    whole = b"".join(STREAMS[kind])
    pieces = [whole[at : at + 65_536] for at in range(0, len(whole), 65_536)]
    assert benchmark(translate, DIALECTS[kind], pieces).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("kind", STREAMS)
def test_a_request(benchmark: BenchmarkFixture, kind: str) -> None:
    assert benchmark(DIALECTS[kind].begin, CALL).streaming
