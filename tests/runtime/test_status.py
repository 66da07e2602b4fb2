"""Where a proxy says that it is reached."""

from __future__ import annotations

import pytest

from flm.runtime import handle
from flm.runtime.handle import Endpoints, endpoints, url_host


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", Endpoints("http://127.0.0.1:80", None, None)),
        ("::1", Endpoints("http://[::1]:80", None, None)),
        ("0.0.0.0", Endpoints("http://127.0.0.1:80", "http://10.1.2.3:80", None)),
        ("::", Endpoints("http://[::1]:80", None, None)),
        ("192.168.1.5", Endpoints(None, "http://192.168.1.5:80", None)),
        ("fe80::1", Endpoints(None, "http://[fe80::1]:80", None)),
    ],
)
def test_endpoints(address: str, expected: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "_own_address", lambda: "10.1.2.3")
    assert endpoints(address, 80) == expected


def test_url_host() -> None:
    assert (url_host("::1"), url_host("1.2.3.4")) == ("[::1]", "1.2.3.4")
