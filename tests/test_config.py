"""Settings: one table, typed, bounded, and every source in its place."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.config import SETTINGS, Settings, Value, domains, parse, resolve, setting
from flm.errors import CommandCode, CommandError


@pytest.mark.parametrize("spec", SETTINGS.values(), ids=lambda spec: spec.key)
def test_every_setting_explains_itself_and_accepts_its_default(spec) -> None:
    assert spec.meaning
    assert parse(spec.key, str(spec.default)) == spec.default
    assert getattr(Settings(), spec.attribute) == spec.default


@pytest.mark.parametrize("spec", SETTINGS.values(), ids=lambda spec: spec.key)
def test_every_setting_refuses_what_it_is_not(spec) -> None:
    words = {"boolean": "maybe", "text": "two\nlines", "choice": "none of them", "list": "everything"}
    wrong = ({"integer": "1.5", "number": "nan"} | words)[spec.kind]
    with pytest.raises(CommandError) as refusal:
        parse(spec.key, wrong)
    assert refusal.value.code is CommandCode.CONFIG_INVALID
    assert spec.key in refusal.value.message


@pytest.mark.parametrize("spec", [s for s in SETTINGS.values() if s.maximum is not None], ids=lambda spec: spec.key)
def test_bounds_are_inclusive(spec) -> None:
    for bound, beyond in ((spec.minimum, -1), (spec.maximum, 1)):
        assert parse(spec.key, f"{bound}") == bound
        with pytest.raises(CommandError):
            parse(spec.key, f"{bound + beyond}")


def test_the_nearest_source_wins_and_is_named() -> None:
    stored = {"proxy.port": "81", "log.keep": "2", "proxy.workers": "3"}
    resolved = resolve(stored, {"FLM_PROXY_PORT": "82", "FLM_LOG_KEEP": "4"}, {"proxy.port": 83})
    assert resolved.settings.proxy_port == 83
    assert resolved.settings.log_keep == 4
    assert resolved.settings.proxy_workers == 3
    assert [resolved.sources[key] for key in ("proxy.port", "log.keep", "proxy.workers", "proxy.bind")] == [
        "flag",
        "environment",
        "config",
        "default",
    ]


def test_a_bad_environment_variable_is_named() -> None:
    with pytest.raises(CommandError, match="FLM_PROXY_PORT"):
        resolve({}, {"FLM_PROXY_PORT": "high"})


def test_an_unknown_key_lists_its_neighbours() -> None:
    with pytest.raises(CommandError, match=r"proxy\.port"):
        setting("proxy.prot")


@pytest.mark.parametrize(
    ("key", "meant"), [("proxy.prt", "proxy.port"), ("proxy-port", "proxy.port"), ("ACME.domains", "acme.domain")]
)
def test_a_mistyped_key_is_recognised(key: str, meant: str) -> None:
    with pytest.raises(CommandError, match=f"there is no setting '{key}', perhaps {meant};"):
        parse(key, "1")


def test_a_key_like_none_is_taken_for_none() -> None:
    with pytest.raises(CommandError) as refused:
        parse("x" * 100_000, "1")
    assert "perhaps" not in refused.value.message
    assert len(refused.value.message) < 5000


@given(st.text(), st.sampled_from(sorted(SETTINGS)))
def test_any_text_is_a_value_or_a_clear_refusal(text: str, key: str) -> None:
    try:
        value = parse(key, text)
    except CommandError:
        return
    assert not (isinstance(value, float) and not math.isfinite(value))


@pytest.mark.parametrize(
    "text",
    ["", "e:POST /api/pull", "*:* /*", " gpu-1:DELETE /api/delete , gpu-1:* /models/* ", "e:GET /", "e:GET /a//*"],
)
def test_routes_to_open_are_a_list(text: str) -> None:
    assert parse("passthrough.open_routes", text) == text.strip()


@pytest.mark.parametrize(
    "text",
    ["e:/x", "e:POST", "e:POST x", "e:post /x", "E:POST /x", "e:POST /x,", ",", "e:POST /x e:POST /y", "e:POST /x*",
     "e:POST /a*/b", "e:POST /a?b", "e:POST /a%2e", "e:POST /a;b", "e:POST /a\\b", "e:POST /\u00e4", "*",
     "e:POST /x#", "e:POST  /x\0", "e:PO ST /x"],
)  # fmt: skip
def test_other_lists_of_routes_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="ENGINE:METHOD /path"):
        parse("passthrough.open_routes", text)


def test_a_long_list_that_is_wrong_at_its_end_is_refused_at_once() -> None:
    with pytest.raises(CommandError):
        parse("passthrough.open_routes", ", ".join(["e:POST /a/b/c/*"] * 2000) + ", e:POST")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ("127.0.0.1", 3560, 0)),
        ({"proxy.mode": "dev-selfsigned"}, ("127.0.0.1", 3560, 3561)),
        ({"proxy.mode": "dev-selfsigned", "proxy.port": 80}, ("127.0.0.1", 80, 443)),
        ({"proxy.mode": "dev-selfsigned", "proxy.port": 65535}, ("127.0.0.1", 65535, 65534)),
        ({"proxy.mode": "https-acme"}, ("*", 80, 443)),
        ({"proxy.mode": "https-acme", "proxy.port": 8880}, ("*", 8880, 8881)),
        ({"proxy.mode": "https-acme", "proxy.port": 3560}, ("*", 3560, 3561)),
        ({"proxy.mode": "https-acme", "proxy.https_port": 8443}, ("*", 80, 8443)),
        ({"proxy.mode": "https-acme", "proxy.bind": "127.0.0.1"}, ("127.0.0.1", 80, 443)),
    ],
)
def test_addresses_follow_from_the_mode(flags: dict[str, Value], expected: tuple[str, int, int]) -> None:
    settings = resolve({}, {}, flags).settings
    assert (settings.proxy_bind, settings.proxy_port, settings.proxy_https_port) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FLM_ACME_USE_PROD": "false"}, (True, "environment")),
        ({"FLM_ACME_USE_PROD": "true"}, (False, "environment")),
        ({"FLM_ACME_USE_PROD": "false", "FLM_ACME_STAGING": "false"}, (False, "environment")),
        ({}, (False, "default")),
    ],
)
def test_the_other_name_of_staging(environment: dict[str, str], expected: tuple[bool, str]) -> None:
    resolved = resolve({}, environment)
    assert (resolved.settings.acme_staging, resolved.sources["acme.staging"]) == expected


@pytest.mark.parametrize(
    "name",
    [
        "*.example.com",
        "192.0.2.1",
        "https://llm.example.com/",
        "llm.example.com:443",
        "llm.example.com.",
        "bücher.example",
    ],
)
def test_what_is_no_name_of_a_certificate_is_told_so(name: str) -> None:
    with pytest.raises(CommandError, match="in their xn-- form; no wildcard, address, port, URL or final dot"):
        resolve({}, {}, {"acme.domain": name})


def test_the_other_name_of_staging_is_checked() -> None:
    with pytest.raises(CommandError, match="FLM_ACME_USE_PROD must be true or false"):
        resolve({}, {"FLM_ACME_USE_PROD": "maybe"})


def test_domains_are_small_and_each_once() -> None:
    settings = resolve({"acme.domain": "B.example , a.example,b.example"}, {}).settings
    assert domains(settings) == ("b.example", "a.example")
