"""Where engines are looked for: environment variables as the engines read them, and paths per system."""

from __future__ import annotations

import pytest

from flm.engines.ollama_places import HostParts, own_address, parse_host
from flm.engines.places import dialled, executables
from flm.engines.registry import DIALECTS

LOCAL = "http://127.0.0.1:11434"


@pytest.mark.parametrize(
    ("value", "scheme", "host", "port", "path", "dial"),
    [
        ("", "http", "127.0.0.1", "11434", "", LOCAL),
        ("   ", "http", "127.0.0.1", "11434", "", LOCAL),
        ("1.2.3.4", "http", "1.2.3.4", "11434", "", "http://1.2.3.4:11434"),
        ("1.2.3.4:80", "http", "1.2.3.4", "80", "", "http://1.2.3.4:80"),
        (' "1.2.3.4:5" ', "http", "1.2.3.4", "5", "", "http://1.2.3.4:5"),
        ("'1.2.3.4'", "http", "1.2.3.4", "11434", "", "http://1.2.3.4:11434"),
        (":1234", "http", "", "1234", "", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http", "0.0.0.0", "11434", "", LOCAL),
        ("0.0.0.0:1", "http", "0.0.0.0", "1", "", "http://127.0.0.1:1"),
        ("[::]:1", "http", "::", "1", "", "http://[::1]:1"),
        ("::", "http", "::", "11434", "", "http://[::1]:11434"),
        ("::1", "http", "::1", "11434", "", "http://[::1]:11434"),
        ("[::1]", "http", "::1", "11434", "", "http://[::1]:11434"),
        ("[::1]:99", "http", "::1", "99", "", "http://[::1]:99"),
        ("FE80::A", "http", "fe80::a", "11434", "", "http://[fe80::a]:11434"),
        ("box", "http", "box", "11434", "", "http://box:11434"),
        ("box:", "http", "box", "11434", "", "http://box:11434"),
        ("box:x", "http", "box", "11434", "", "http://box:11434"),
        ("box:-1", "http", "box", "11434", "", "http://box:11434"),
        ("box:65535", "http", "box", "65535", "", "http://box:65535"),
        ("box:65536", "http", "box", "11434", "", "http://box:11434"),
        ("http://box", "http", "box", "80", "", "http://box:80"),
        ("https://box", "https", "box", "443", "", "https://box:443"),
        ("https://box:8443/base/", "https", "box", "8443", "base/", "https://box:8443/base"),
        ("http://box:x", "http", "box", "80", "", "http://box:80"),
        ("box/base/path", "http", "box", "11434", "base/path", "http://box:11434/base/path"),
        ("ollama.com", "https", "ollama.com", "443", "", None),
        ("https://ollama.com", "https", "ollama.com", "443", "", None),
        ("ftp://box", "ftp", "box", "11434", "", None),
    ],
)
def test_ollama_host(value: str, scheme: str, host: str, port: str, path: str, dial: str | None) -> None:
    assert parse_host(value) == HostParts(scheme, host, port, path)
    assert own_address(value) == dial


def test_ollama_addresses() -> None:
    addresses = DIALECTS["ollama"].addresses
    assert addresses({}, {}) == (LOCAL,)
    assert addresses({"OLLAMA_HOST": "0.0.0.0"}, {}) == (LOCAL,)
    assert addresses({"OLLAMA_HOST": "10.0.0.5:5"}, {}) == ("http://10.0.0.5:5", LOCAL)
    assert addresses({"OLLAMA_HOST": "ollama.com"}, {}) == (LOCAL,)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("http://127.0.0.1:8080", "http://127.0.0.1:9931")),
        (
            {"LLAMA_ARG_PORT": "9000"},
            ("http://127.0.0.1:9000", "http://127.0.0.1:8080", "http://127.0.0.1:9931"),
        ),
        ({"LLAMA_ARG_PORT": "x"}, ("http://127.0.0.1:8080", "http://127.0.0.1:9931")),
        ({"LLAMA_ARG_PORT": "99999"}, ("http://127.0.0.1:8080", "http://127.0.0.1:9931")),
        ({"LLAMA_ARG_HOST": "0.0.0.0"}, ("http://127.0.0.1:8080", "http://127.0.0.1:9931")),
        ({"LLAMA_ARG_HOST": "::1"}, ("http://[::1]:8080", "http://[::1]:9931")),
        ({"LLAMA_ARG_HOST": "/run/llama.sock"}, ("http://127.0.0.1:8080", "http://127.0.0.1:9931")),
        (
            {"LLAMA_ARG_HOST": "10.0.0.1, /x.sock", "LLAMA_ARG_API_PREFIX": "/llm/"},
            ("http://10.0.0.1:8080/llm", "http://10.0.0.1:9931/llm"),
        ),
    ],
)
def test_llama_addresses(environment: dict[str, str], expected: tuple[str, ...]) -> None:
    assert DIALECTS["llamacpp"].addresses(environment, {}) == expected


def test_a_registered_server_is_not_looked_for() -> None:
    assert DIALECTS["openai"].addresses({"OPENAI_BASE_URL": "http://x"}, {}) == ()
    assert DIALECTS["openai"].binaries("linux", {"PATH": "/usr/bin"}, "/home/a") == ()


def test_executables_are_listed_once() -> None:
    assert executables("x", "linux", {"PATH": "/a:/a/:/b"}, ("/b",)) == ("/a/x", "/b/x")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("0:0::0", "[::1]"),
        ("::ffff:0.0.0.0", "127.0.0.1"),
        ("::ffff:1.2.3.4", "[::ffff:1.2.3.4]"),
        ("a", "a"),
        ("fe80::1", "[fe80::1]"),
    ],
)
def test_dialled(host: str, expected: str) -> None:
    assert dialled(host) == expected
