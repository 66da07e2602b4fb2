"""What crosses between a client and an engine: no hop's own headers, no credential, no word for FLM's own origin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm._native import generate_key
from flm.policy.crossing import Place, Veil, answer_headers, request_headers

PLACE = Place("gpu", "http://10.0.0.5:8000", "/base")
SECRET = "sk-the-credential-of-flm"

TO_ENGINE = [b"content-type", b"accept", b"accept-language", b"user-agent", b"range", b"if-none-match", b"x-custom",
             b"anthropic-version", b"openai-beta"]  # fmt: skip
NOT_TO_ENGINE = [
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"http2-settings", b"host", b"content-length", b"expect", b"accept-encoding",
    b"authorization", b"cookie", b"x-api-key", b"api-key", b"x-goog-api-key", b"x-auth-token", b"x-access-token",
    b"x-amz-security-token", b"x-secret", b"x-session-id", b"ocp-apim-subscription-key", b"origin", b"referer",
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-anything", b"x-real-ip", b"true-client-ip",
    b"cf-connecting-ip", b"via", b"x-stainless-os", b"x-conversation-id", b"x-request-id", b"x-original-url",
    b"x-rewrite-url", b"x-http-method-override", b"x-method-override", b"sec-fetch-site", b"x-flm-anything",
    b"X_Forwarded_For", b"Content_Length", b"max-forwards", b"x-forwarded", b"x-openwebui-user-email", b"remote-user",
    b"remote-groups", b"x-remote-addr", b"x-user", b"x-user-id", b"x-webauth-user", b"forwarded-user", b"some-ip",
    b"fly-client-ip", b"x-clientip", b"wl-proxy-clientip", b"x-originating-url", b"x-host", b"x-override-url",
    b"x-rewrite-path", b"x-http-method", b"pass", b"x-passwd", b"x-pwd", b"x-appengine-country",
]  # fmt: skip
NOT_TO_CLIENT = [
    b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authenticate",
    b"set-cookie", b"set-cookie2", b"server", b"www-authenticate", b"authentication-info", b"alt-svc",
    b"strict-transport-security", b"access-control-allow-origin", b"access-control-allow-credentials", b"x-request-id",
    b"x-flm-warnings", b"content-length", b"content-location", b"refresh", b"date", b"x-should-retry",
    b"clear-site-data", b"x-accel-redirect", b"x-sendfile", b"x-ratelimit-limit-requests", b"x-powered-by", b"via",
]  # fmt: skip
TO_CLIENT = [b"content-type", b"cache-control", b"etag", b"retry-after", b"content-encoding", b"vary", b"x-custom"]


def test_what_says_something_about_the_request_goes_on() -> None:
    headers = tuple((name, b"v") for name in TO_ENGINE)
    assert request_headers(headers) == headers


@pytest.mark.parametrize("name", NOT_TO_ENGINE)
def test_the_rest_does_not(name: bytes) -> None:
    assert request_headers([(name, b"v"), (name.upper(), b"v"), (b"accept", b"*/*")]) == ((b"accept", b"*/*"),)


def test_what_connection_names_is_for_one_hop() -> None:
    headers = [(b"connection", b"x-one , X-Two"), (b"Connection", b"close"), (b"x-one", b"1"), (b"X-Two", b"2"),
               (b"x-three", b"3")]  # fmt: skip
    assert request_headers(headers) == ((b"x-three", b"3"),)
    answer = {b"connection": b"X-One, close", b"x-one": b"1", b"x-three": b"3"}
    assert answer_headers(answer, PLACE, None) == [(b"x-three", b"3")]


def test_a_key_never_goes_on_wherever_it_was_written() -> None:
    key, _ = generate_key()
    assert request_headers([(b"x-note", b"a " + key.encode()), (b"x-other", b"flm_")]) == ((b"x-other", b"flm_"),)


def test_repeated_headers_stay_apart() -> None:
    headers = ((b"accept", b"a"), (b"accept", b"b"))
    assert request_headers(headers) == headers


@pytest.mark.parametrize("name", NOT_TO_CLIENT)
def test_what_an_engine_may_not_say_to_a_client(name: bytes) -> None:
    assert answer_headers({name: b"v", b"etag": b"1"}, PLACE, None) == [(b"etag", b"1")]


def test_what_an_engine_may_say() -> None:
    headers = dict.fromkeys(TO_CLIENT, b"v")
    assert answer_headers(headers, PLACE, None) == list(headers.items())


@pytest.mark.parametrize("value", [b"a\nb", b"a\rb", b"a\x00b", b"\x01", b"\x7f"])
def test_a_header_that_could_break_out_crosses_in_no_direction(value: bytes) -> None:
    assert request_headers([(b"x-custom", value)]) == ()
    assert answer_headers({b"x-custom": value, b"x bad": b"1", b"": b"2"}, PLACE, None) == []


def test_an_answers_header_that_holds_flms_credential_stays_here() -> None:
    secret = SECRET.encode()
    encoded = secret.replace(b"-", b"%2d")
    for header in (
        {b"x-echo": b"Bearer " + secret},
        {secret: b"1"},
        {b"x-" + secret: b"1"},
        {b"location": b"/base/x?key=" + secret},
        {b"location": b"/base/x?key=" + encoded},
        {b"location": b"/base/" + encoded},
        {b"link": b"</x?key=" + encoded + b">"},
    ):
        assert answer_headers({**header, b"etag": b"1"}, PLACE, secret) == [(b"etag", b"1")]


def test_a_header_named_like_the_credential_in_small_letters_stays_here() -> None:
    assert answer_headers({b"sk-canary0123456789": b"1"}, PLACE, b"sk-CANARY0123456789") == []


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        (b"/base/x", b"/engine/gpu/x"),
        (b"/base/x?a=b", b"/engine/gpu/x?a=b"),
        (b"http://10.0.0.5:8000/base/x", b"/engine/gpu/x"),
        (b"/base/", b"/engine/gpu/"),
        (b"http://169.254.169.254/latest", None),
        (b"http://10.0.0.5:8000.evil/base/x", None),
        (b"http://10.0.0.5:8000@evil/base/x", None),
        (b"//evil/base/x", None),
        (b"https://10.0.0.5:8000/base/x", None),
        (b"/base/../x", None),
        (b"/base/%2e%2e/x", None),
        (b"/base//x", None),
        (b"/other/x", None),
        (b"/basement", None),
        (b"x", None),
        (b"../x", None),
        (b"javascript:alert(1)", None),
        (b"/base/x\r\nset-cookie: a", None),
        (b"/base/x?a\r\nb", None),
        (b"/base/\xff", None),
        (b"", None),
    ],
)
def test_a_redirect_leads_below_the_engine_or_nowhere(location: bytes, seen: bytes | None) -> None:
    expected = [] if seen is None else [(b"location", seen)]
    assert answer_headers({b"location": location}, PLACE, None) == expected


def test_a_redirect_of_an_engine_at_the_root() -> None:
    assert Place("e", "http://h:1", "").translated(b"http://h:1/x") == b"/engine/e/x"
    assert Place("e", "http://h:1", "").translated(b"//evil/x") is None
    assert Place("e", "http://h:1", "").translated(b"http://h:1//evil/x") is None


@given(st.lists(st.sampled_from([SECRET, SECRET[:9], SECRET[9:], "s", "sk-", "x", "sksk-", SECRET[:-1]])), st.data())
def test_the_veil_hides_the_credential_however_it_is_cut(words: list[str], data: st.DataObject) -> None:
    text = "".join(words).encode()
    veil = Veil(SECRET)
    seen, held = b"", 0
    while text[held:]:
        step = data.draw(st.integers(1, 30))
        seen += veil.feed(text[held : held + step])
        held += step
        assert len(text[:held]) - len(seen) < len(SECRET)
    seen += veil.finish()
    assert SECRET.encode() not in seen
    assert len(seen) == len(text)
    assert seen == text.replace(SECRET.encode(), b"*" * len(SECRET))


@pytest.mark.parametrize("credential", [None, "EMPTY", "lm-studio"])
def test_without_a_credential_worth_hiding_nothing_is_held_back(credential: str | None) -> None:
    veil = Veil(credential)
    assert veil.secret is None
    assert veil.feed(b"lm-studio EMPTY E") == b"lm-studio EMPTY E"
    assert veil.finish() == b""


def test_nothing_is_held_back_that_cannot_be_the_credentials_beginning() -> None:
    veil = Veil(SECRET)
    assert veil.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert veil.feed(b"risk-") == b"ri"
    assert veil.feed(b"!") == b"sk-!"
