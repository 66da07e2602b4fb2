"""The table of errors is as promised, and what leaves FLM is what the OpenAI SDK can read."""

from __future__ import annotations

import json

import pytest

from flm.errors import (
    CommandCode,
    CommandError,
    ErrorKind,
    RequestError,
    UpstreamProtocolError,
    engine_refusal,
    envelope,
    error_event,
)


def test_every_kind_has_a_status_and_its_own_code() -> None:
    codes = [kind.code for kind in ErrorKind]
    assert len(set(codes)) == len(codes)
    assert all(400 <= kind.status < 600 for kind in ErrorKind)


def test_the_envelope_has_the_five_fields_and_nulls() -> None:
    error = RequestError(ErrorKind.MODEL_NOT_FOUND, 'no model "x"\n')
    assert json.loads(envelope(error, "1-a")) == {
        "error": {
            "message": 'no model "x"\n',
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
            "request_id": "1-a",
        }
    }


def test_an_error_event_is_one_event_on_one_line_without_done() -> None:
    event = error_event(RequestError(ErrorKind.ENGINE_ERROR, "a\nb"), "1-a")
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert b"[DONE]" not in event


@pytest.mark.parametrize(
    ("status", "expected_status", "code"),
    [
        (400, 400, "invalid_request"),
        (404, 404, "model_not_found"),
        (418, 418, "invalid_request"),
        (401, 502, "engine_error"),
        (403, 502, "engine_error"),
        (429, 503, "engine_unavailable"),
        (500, 502, "engine_error"),
        (501, 501, "not_implemented"),
        (503, 503, "engine_unavailable"),
        (599, 502, "engine_error"),
    ],
)
def test_an_engines_refusal_keeps_its_words(status: int, expected_status: int, code: str) -> None:
    error = engine_refusal(status, "the engine's words")
    assert (error.status, error.code) == (expected_status, code)
    assert "the engine's words" in error.message


def test_an_engines_own_code_is_kept_for_the_callers_faults() -> None:
    assert engine_refusal(400, "too long", code="context_length_exceeded").code == "context_length_exceeded"


def test_a_retry_is_discouraged_only_where_it_cannot_help() -> None:
    assert RequestError(ErrorKind.INTERNAL_ERROR, "x").should_retry is False
    assert UpstreamProtocolError("x").should_retry is False
    assert RequestError(ErrorKind.ENGINE_UNAVAILABLE, "x").should_retry is None


def test_exit_codes_tell_whose_fault_it_is() -> None:
    internal = {CommandCode.DB_ERROR, CommandCode.MIGRATION_FAILED, CommandCode.IO_ERROR}
    for code in CommandCode:
        assert CommandError(code, "x").code.exit_code == (2 if code in internal else 1)
