"""Where a proxy says that it is reached."""

from __future__ import annotations

import msgspec
import pytest

from flm.runtime import handle
from flm.runtime.boot import Served
from flm.runtime.handle import CertificateLine, Endpoints, endpoints, url_host
from flm.runtime.status import certified, hinted


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1", Endpoints("http://127.0.0.1:81", None, None)),
        ("::1", Endpoints("http://[::1]:81", None, None)),
        ("0.0.0.0", Endpoints("http://127.0.0.1:81", "http://10.1.2.3:81", None)),
        ("*", Endpoints("http://127.0.0.1:81", "http://10.1.2.3:81", None)),
        ("::", Endpoints("http://[::1]:81", None, None)),
        ("192.168.1.5", Endpoints(None, "http://192.168.1.5:81", None)),
        ("fe80::1", Endpoints(None, "http://[fe80::1]:81", None)),
    ],
)
def test_endpoints(bind: str, expected: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "own_address", lambda: "10.1.2.3")
    assert endpoints(Served("local-http", bind, 81, 0)) == expected


@pytest.mark.parametrize(
    ("served", "names", "expected"),
    [
        (Served("local-http", "127.0.0.1", 80, 0), (), Endpoints("http://127.0.0.1", None, None)),
        (Served("dev-selfsigned", "127.0.0.1", 80, 443), (), Endpoints("https://127.0.0.1", None, None)),
        (Served("dev-selfsigned", "127.0.0.1", 1, 2), (), Endpoints("https://127.0.0.1:2", None, None)),
        (Served("dev-selfsigned", "0.0.0.0", 1, 2), ("localhost",), Endpoints("https://127.0.0.1:2", None, None)),
        (
            Served("dev-selfsigned", "*", 1, 2),
            ("localhost", "10.1.2.3"),
            Endpoints("https://127.0.0.1:2", "https://10.1.2.3:2", None),
        ),
        (Served("https-acme", "*", 80, 443), ("a.example", "b.example"), Endpoints(None, None, "https://a.example")),
        (Served("https-acme", "127.0.0.1", 1, 2), ("a.example",), Endpoints(None, None, "https://a.example:2")),
    ],
)
def test_endpoints_of_https(
    served: Served, names: tuple[str, ...], expected: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle, "own_address", lambda: "10.1.2.3")
    assert endpoints(served, names) == expected


@pytest.mark.parametrize(
    ("names", "served", "expected"),
    [
        (("b.example", "a.example"), ("a.example", "b.example"), ("b.example", "a.example")),
        (("new.example", "a.example"), ("a.example",), ("a.example",)),
        (("new.example",), ("a.example",), ("a.example",)),
        (("new.example",), (), ("new.example",)),
    ],
)
def test_clients_go_where_the_certificate_is_for(
    names: tuple[str, ...], served: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert certified(names, served) == expected


def test_url_host() -> None:
    assert (url_host("::1"), url_host("1.2.3.4")) == ("[::1]", "1.2.3.4")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("config", "`flm config set acme.staging false && flm proxy reload`"),
        ("flag", "without `--acme-staging` gets a trusted one"),
        ("environment", "FLM_ACME_STAGING or FLM_ACME_USE_PROD gets a trusted one"),
    ],
)
def test_the_hint_of_a_staging_certificate_is_what_ends_it(source: str, hint: str) -> None:
    """An option and a variable win over the setting, so that a reload would change nothing."""
    stored = "`flm config set acme.staging false && flm proxy reload` gets a trusted one"
    line = CertificateLine("https-acme", [], None, None, None, None, None, None, None, False, None, hint=stored)
    said = hinted(line, source)
    assert said is not None
    assert hint in (said.hint or "")
    assert (said == line) == (source == "config")
    trusted = msgspec.structs.replace(line, hint=None)
    assert hinted(trusted, source) == trusted
    assert hinted(None, source) is None
