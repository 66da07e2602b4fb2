"""The request peek looks once, keeps what it does not know, and says what is wrong by name."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import RequestError
from flm.wire.openai import check_values, peek, with_model


def refused(body: bytes) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        peek(body)
    return caught.value.status, caught.value.code, caught.value.param


def test_what_a_peek_sees() -> None:
    seen = peek(b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[ 1, {"a":null} ]}')
    assert (seen.model, seen.stream, seen.include_usage) == ("m", True, True)
    assert bytes(seen.fields["messages"]) == b'[ 1, {"a":null} ]'


@pytest.mark.parametrize(
    ("body", "stream", "usage"),
    [
        (b'{"model":"m"}', False, False),
        (b'{"model":"m","stream":null,"stream_options":null}', False, False),
        (b'{"model":"m","stream":false,"stream_options":{}}', False, False),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":null,"x":1}}', True, False),
    ],
)
def test_absent_and_null(body: bytes, stream: bool, usage: bool) -> None:
    seen = peek(body)
    assert (seen.stream, seen.include_usage) == (stream, usage)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"model":"m"} x',
        b'{"model":"m","a":}',
        b'{"model":"m","a":"\xff"}',
        b'{"model":"m","a":"\x01"}',
        b'{"model":"m","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","a":NaN}',
    ],
)
def test_what_is_not_a_json_object(body: bytes) -> None:
    assert refused(body) == (400, "invalid_request", None)


@pytest.mark.parametrize("value", [b"1", b"null", b'""', b"[]", b'{"a":1}', b"true"])
def test_a_model_that_is_none(value: bytes) -> None:
    assert refused(b'{"model":' + value + b"}") == (400, "invalid_model", "model")


def test_a_missing_model() -> None:
    assert refused(b"{}") == (400, "invalid_model", "model")


@pytest.mark.parametrize("value", [b"1", b'"true"', b"[]"])
def test_a_wrong_stream(value: bytes) -> None:
    assert refused(b'{"model":"m","stream":' + value + b"}") == (400, "invalid_request", "stream")


@pytest.mark.parametrize("value", [b"1", b"[]", b'{"include_usage":1}', b'{"include_usage":"yes"}'])
def test_wrong_stream_options(value: bytes) -> None:
    assert refused(b'{"model":"m","stream_options":' + value + b"}") == (400, "invalid_request", "stream_options")


def test_another_model_changes_nothing_else() -> None:
    body = b'{"model":"flm://e/m","messages":[ {"content" : "\\u00e9 \xc3\xa9"} ],"temperature":1e0,"x":{"model":"y"}}'
    written = with_model(peek(body).fields, "m")
    assert written == body.replace(b'"flm://e/m"', b'"m"')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.text(min_size=1))
def test_any_object_keeps_its_fields(fields: dict[str, object], model: str) -> None:
    fields = {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}
    try:
        seen = peek(json.dumps({**fields, "model": "old"}).encode())
    except RequestError:
        # A lone surrogate is legal for `json` and for nobody else.
        assert "\\ud" in json.dumps(fields)
        return
    if not model.isprintable():
        return
    assert json.loads(with_model(seen.fields, model)) == {**fields, "model": model}


@given(st.binary(max_size=200))
def test_any_bytes_give_a_peek_or_an_error(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        peek(body)


@pytest.mark.parametrize("body", [b'{"a":[1,2,3]}', b'{"a":",,,,,,,,,,"}', b'{"a":"\\",,,,,,,,,"}'])
def test_a_body_of_few_values_may_be_long(body: bytes) -> None:
    check_values(body, 5)


@pytest.mark.parametrize("body", [b'{"a":[1,2,3,4,5]}', b"[[[[[[", b"{},{},{},"])
def test_a_body_of_too_many_values_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="more than 5 JSON values") as refused:
        check_values(body, 5)
    assert refused.value.status == 413
