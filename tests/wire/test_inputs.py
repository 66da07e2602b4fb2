"""The four shapes of texts for a model, and what is none of them."""

from __future__ import annotations

import msgspec
import pytest

from flm.errors import RequestError
from flm.wire.inputs import Inputs, inputs

Raw = msgspec.Raw


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a", Inputs("texts", 1)),
        ("", Inputs("texts", 1)),
        ((b'"a"', b'"b"'), Inputs("texts", 2)),
        ((b"1", b"23"), Inputs("tokens", 1)),
        ((b"[1]", b"[2,3]"), Inputs("tokens", 2)),
    ],
)
def test_what_is_given(value: str | tuple[bytes, ...], found: Inputs) -> None:
    assert inputs(value if isinstance(value, str) else [Raw(item) for item in value], "prompt") == found


@pytest.mark.parametrize("value", [(), (b"null",), (b'"a"', b"1"), (b"{}",), (b"-1",), (b"true",), (b"[1]", b"1")])
def test_what_is_none(value: tuple[bytes, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        inputs([Raw(item) for item in value], "prompt")
    assert (caught.value.status, caught.value.param) == (400, "prompt")
