"""The look for a caller's marks finds one wherever it stands: a header's name, its value, the key, in any case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.behaviour.hygiene import CREDENTIAL, MARKS, PASSED_ON, Arrived, checked

STAGE: Any = SimpleNamespace(kind="x", flm=SimpleNamespace(key="flm_the_callers_key"))
CLEAN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer " + CREDENTIAL.encode() + b"\r\n%s\r\n{}"
)


def test_clean_bytes_pass() -> None:
    assert checked(STAGE, "chat", CLEAN % b"") == Arrived(
        "chat", "POST /v1/chat/completions", ("authorization", "host")
    )
    assert checked(STAGE, "models", b"") == Arrived("models", "", ())


@pytest.mark.parametrize(
    "leak",
    [
        *(f"{name}: x\r\n" for name in MARKS),
        *(f"x-other: {value}\r\n" for value in MARKS.values()),
        "X-Forwarded-For: 127.0.0.1\r\n",
        "x-other: FLM_the_callers_key\r\n",
        "\r\n flm_the_callers_key",
    ],
)
def test_a_mark_is_found(leak: str) -> None:
    with pytest.raises(AssertionError):
        checked(STAGE, "chat", CLEAN % leak.encode())


def test_the_pass_through_may_say_which_program_asks_and_no_more() -> None:
    told = checked(STAGE, "passed on", CLEAN % b"user-agent: canary-agent\r\n", PASSED_ON)
    assert "user-agent" in told.headers
    with pytest.raises(AssertionError):
        checked(STAGE, "passed on", CLEAN % b"cookie: canary-cookie\r\n", PASSED_ON)


def test_an_engine_that_does_not_get_flms_own_credential_is_noticed() -> None:
    with pytest.raises(AssertionError):
        checked(STAGE, "chat", (CLEAN % b"").replace(CREDENTIAL.encode(), b"other"))
