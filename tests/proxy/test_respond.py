"""The warnings header as an RFC 9651 list."""

from __future__ import annotations

import pytest

from flm.proxy.respond import warnings_header


@pytest.mark.parametrize(
    ("change", "item"),
    [
        (("temperature", "clamped", 2), b"temperature;action=clamped;value=2"),
        (("temperature", "clamped", 0.5), b"temperature;action=clamped;value=0.5"),
        (("temperature", "clamped", 2.0), b"temperature;action=clamped;value=2.0"),
        (("temperature", "clamped", 1.23456), b"temperature;action=clamped;value=1.235"),
        (("x", "changed", 1e-9), b"x;action=changed;value=0.0"),
        (("logit_bias", "dropped", None), b"logit_bias;action=dropped"),
        (("a.b", "changed", "low"), b"a.b;action=changed;value=low"),
        (("a", "changed", 'say "\u00e9"\r\n'), b'a;action=changed;value="say \\"?\\"??"'),
        (("a", "changed", True), b"a;action=changed;value=?1"),
        (("a", "changed", 10**15), b'a;action=changed;value="1000000000000000"'),
        (("9a", "dropped", None), b'"9a";action=dropped'),
        (("*", "dropped", 3), b"*;action=dropped;value=3"),
    ],
)
def test_one_change(change: tuple[str, str, object], item: bytes) -> None:
    assert warnings_header((change,)) == item
    assert warnings_header((change, change)) == item + b", " + item
