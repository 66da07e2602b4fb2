"""Lines and events come out the same however the bytes were cut, and nothing grows without bound."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm.config import MAX_LINE_BYTES
from flm.errors import UpstreamProtocolError
from flm.wire import framing
from flm.wire.framing import Comment, Event, EventReader, LineReader, readable
from tests.support.translating import cut, single_bytes


def events(*pieces: bytes) -> list[Event | Comment]:
    reader = EventReader()
    found = [event for piece in pieces for event in reader.feed(piece)]
    return found + reader.finish()


def lines(*pieces: bytes) -> list[bytes]:
    reader = LineReader()
    found = [line for piece in pieces for line in reader.feed(piece)]
    return found + reader.finish()


CASES = [
    pytest.param(b"", [], id="nothing"),
    pytest.param(b"data: a\n\n", [Event(b"a")], id="one"),
    pytest.param(b"data: a\r\n\r\n", [Event(b"a")], id="crlf"),
    pytest.param(b"data: a\r\r", [Event(b"a")], id="cr"),
    pytest.param(b"data: a\r\n\ndata: b\n\r\n", [Event(b"a"), Event(b"b")], id="mixed ends"),
    pytest.param(b"data:a\n\n", [Event(b"a")], id="no blank"),
    pytest.param(b"data:  a \n\n", [Event(b" a ")], id="only one blank belongs to the syntax"),
    pytest.param(b"data: a\ndata: b\ndata:\ndata: c\n\n", [Event(b"a\nb\n\nc")], id="several data lines"),
    pytest.param(b"data\ndata: b\n\n", [Event(b"\nb")], id="data without colon"),
    pytest.param(b": ping\n\n", [Comment(b": ping")], id="comment"),
    pytest.param(b":\n\ndata: a\n\n", [Comment(b":"), Event(b"a")], id="empty comment"),
    pytest.param(b"data: a\n:x\ndata: b\n\n", [Comment(b":x"), Event(b"a\nb")], id="comment inside an event"),
    pytest.param(b"event: error\ndata: a\n\n", [Event(b"a", b"event: error")], id="event name"),
    pytest.param(b"id: 1\nretry: 5\ndata: a\n\n", [Event(b"a", b"id: 1\nretry: 5")], id="other fields"),
    pytest.param(b"event: ping\n\ndata: a\n\n", [Event(b"a")], id="event without data is left out"),
    pytest.param(b'error: {"m":1}\n\n', [Event(b"", b'error: {"m":1}')], id="unknown field alone is kept"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")], id="byte order mark"),
    pytest.param(
        b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"a"), Event(b"", b"\xef\xbb\xbfdata: b")], id="mark later"
    ),
    pytest.param(b"data: a", [Event(b"a")], id="no end of line"),
    pytest.param(b"data: a\n", [Event(b"a")], id="no empty line"),
    pytest.param(b"data: a\r", [Event(b"a")], id="no empty line after cr"),
    pytest.param(b"data: a\n\n: x", [Event(b"a"), Comment(b": x")], id="comment at the end"),
    pytest.param(b"\n\n\n", [], id="empty lines"),
    pytest.param(b"database: a\n\n", [Event(b"", b"database: a")], id="a name that begins like data"),
    pytest.param("data: 日本\u2028\n\n".encode(), [Event("日本\u2028".encode())], id="only CR and LF end a line"),
]


@pytest.mark.parametrize(("stream", "expected"), CASES)
def test_events(stream: bytes, expected: list[Event | Comment]) -> None:
    assert events(stream) == expected
    assert events(*single_bytes(stream)) == expected
    for place in range(len(stream)):
        assert events(stream[:place], stream[place:]) == expected


def test_an_event_comes_out_with_the_bytes_that_complete_it() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\nda") == [Event(b"a")]
    assert reader.feed(b"ta: b\r\n\r") == [Event(b"b")]
    assert reader.feed(b"\n:") == []
    assert reader.feed(b"\n") == [Comment(b":")]
    assert reader.finish() == []


@given(
    st.lists(
        st.sampled_from(
            [b"data: x\n\n", b"\r\n", b"\r", b"\n", b":c\n", b"data:", b"event: e\n", b"\xef\xbb\xbf", b"y"]
        )
    ),
    st.lists(st.integers(0, 10_000), max_size=8),
)
@example([b"data: x\n\n", b"\r", b"\n"], [10])
def test_events_do_not_depend_on_the_cuts(parts: list[bytes], places: list[int]) -> None:
    stream = b"".join(parts)
    assert events(*cut(stream, places)) == events(stream) == events(*single_bytes(stream))


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_bytes_fall_into_the_same_events(stream: bytes, places: list[int]) -> None:
    assert events(*cut(stream, places)) == events(stream)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [(b"", []), (b"a\nb\n", [b"a", b"b"]), (b"a\nb", [b"a", b"b"]), (b"a\r\n", [b"a\r"]), (b"\n\n", [b"", b""])],
)
def test_lines(stream: bytes, expected: list[bytes]) -> None:
    assert lines(stream) == lines(*single_bytes(stream)) == expected


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=8))
def test_lines_are_what_split_says(stream: bytes, places: list[int]) -> None:
    expected = stream.split(b"\n")
    assert lines(*cut(stream, places)) == (expected if expected[-1] else expected[:-1])


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(framing, "MAX_LINE_BYTES", 100)
    return 100


def read_into(found: list[bytes], reader: LineReader | EventReader, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        found += reader.feed(piece)  # type: ignore[arg-type]
    found += reader.finish()  # type: ignore[arg-type]


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_line_over_the_limit_is_refused_after_the_lines_before_it(small_limit: int, pieces: int) -> None:
    stream = b"ok\n" + b"x" * (small_limit + 1) + b"\nlater\n"
    reader = LineReader()
    found: list[bytes] = []
    with pytest.raises(UpstreamProtocolError, match="100 bytes"):
        read_into(found, reader, cut(stream, range(0, len(stream), -(-len(stream) // pieces))))
    assert found == [b"ok"]


def test_a_line_of_exactly_the_limit_passes(small_limit: int) -> None:
    line = b"x" * small_limit
    assert lines(line + b"\n") == lines(*single_bytes(line + b"\n")) == lines(line) == [line]


def test_a_line_that_never_ends_is_refused_while_it_grows(small_limit: int) -> None:
    reader = LineReader()
    for _ in range(small_limit):
        reader.feed(b"x")
    with pytest.raises(UpstreamProtocolError):
        reader.feed(b"x")


def test_an_event_of_many_lines_is_bounded_too(small_limit: int) -> None:
    reader = EventReader()
    with pytest.raises(UpstreamProtocolError):
        read_into([], reader, [b"data:\n"] * small_limit)


def test_the_limit_holds_for_real() -> None:
    reader = LineReader()
    reader.feed(b"x" * MAX_LINE_BYTES)
    with pytest.raises(UpstreamProtocolError):
        reader.feed(b"x")


def seconds_for(size: int) -> float:
    """CPU time to read one line of `size` bytes that comes byte by byte."""
    reader = LineReader()
    began = time.process_time()
    for _ in range(size):
        reader.feed(b"x")
    return time.process_time() - began


def test_work_is_linear_in_the_input() -> None:
    """A reader that searched or copied the held bytes again would need 64 times as long for 8 times the bytes."""
    small = min(seconds_for(20_000) for _ in range(3))
    large = min(seconds_for(160_000) for _ in range(3))
    assert large < small * 24


def test_only_utf8_is_readable() -> None:
    assert readable("日".encode()) == "日".encode()
    with pytest.raises(UpstreamProtocolError):
        readable(b"\xff")
