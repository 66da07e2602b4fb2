"""Every route with every kind of key, the order of the checks, and each status that needs no engine."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec
import pytest

from flm.proxy.app import ROUTES
from flm.snapshot import Model
from tests.proxy.harness import CHAT, Client, World, chat, engine, run

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
PATHS = [
    *(path.decode() for path in ROUTES),
    "/v1/models/flm://e/m",
    "/v1/models/m",
    "/engine/e/x",
    "/",
    "/v1",
    "/v1/",
    "/nowhere",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "FOO"]
PUBLIC = {"/health"}


def answered(world: World, *arguments: Any, **more: Any) -> Client:
    answer: list[Client] = []

    async def ask() -> None:
        answer.append(await world.ask(*arguments, **more))

    run(ask())
    return answer[0]


def without_id(client: Client) -> bytes:
    return re.sub(rb"\d{13}-[0-9a-f]{16}", b"ID", client.body)


def test_health_says_ok_and_no_more() -> None:
    client = answered(World(), "GET", "/health", key=None)
    assert (client.status, client.body) == (200, b'{"status":"ok"}')
    assert client.headers[b"server"] == b"flm"
    assert re.fullmatch(rb"\d{13}-[0-9a-f]{16}", client.headers[b"x-request-id"])
    assert answered(World(), "HEAD", "/health", key=None).body == b""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_every_route_but_the_public_one_needs_a_valid_key(path: str, method: str) -> None:
    world = World(engine(NOWHERE))
    revoked = world.add_key(revoked=True)
    expired = world.add_key(expires_at_ms=int(time.time() * 1000) - 1)
    stranger = World().key  # well-formed, unknown here
    bad: list[dict[str, Any]] = [
        {"key": None},
        *({"key": key} for key in (revoked, expired, stranger, "x", "flm_", world.key[:-1], world.key + "x", " ")),
        {"key": world.key + ", Bearer " + world.key},
        {"headers": {"authorization": "Bearer " + world.key}},  # a second one
        {"key": None, "headers": {"authorization": "Basic " + world.key}},
        {"key": None, "headers": {"authorization": world.key}},
        {"key": None, "headers": {"authorization": b"Bearer \xff\x00" + b"A" * 60_000}},
        {"key": None, "headers": {"x-api-key": world.key, "api-key": world.key, "cookie": "key=" + world.key}},
    ]
    answers = [answered(world, method, path, **request) for request in bad]
    answers.append(answered(world, method, f"{path}?api_key={world.key}", key=None))
    if path in PUBLIC:
        assert {client.status for client in answers} == {200 if method in ("GET", "HEAD") else 405}
        return
    assert {client.status for client in answers} == {401}
    assert len({without_id(client) for client in answers}) == 1
    assert {client.headers[b"www-authenticate"] for client in answers} == {b'Bearer realm="flm"'}
    assert all(b"connection" not in client.headers for client in answers)
    assert answered(world, method, path).status != 401


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR  "])
def test_the_scheme_is_taken_in_any_case(scheme: str) -> None:
    world = World()
    client = answered(world, "GET", "/v1/models", key=None, headers={"authorization": scheme + world.key})
    assert client.status == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/models/", "//health", "/health/", "/HEALTH", "/v1/completion", "*", ""]
)
def test_an_unknown_route_is_404_with_a_key(path: str) -> None:
    client = answered(World(), "GET", path)
    assert (client.status, client.code) == (404, "not_found")
    assert "the API is below /v1" in client.error["message"]
    for name in ("/v1/models, ", "/v1/chat/completions, ", "/v1/embeddings, ", "/engine/{engine_id}/{path}"):
        assert name in client.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", b"GET, HEAD"),
        ("DELETE", "/v1/models", b"GET, HEAD"),
        ("POST", "/v1/models/m", b"GET, HEAD"),
        ("GET", CHAT, b"POST"),
        ("TRACE", CHAT, b"GET, HEAD, POST"),
        ("CONNECT", "", b"GET, HEAD, POST"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(method: str, path: str, allow: bytes) -> None:
    client = answered(World(), method, path)
    assert (client.status, client.code, client.headers[b"allow"]) == (405, "method_not_allowed", allow)


BAD_REQUESTS: list[tuple[dict[str, Any], int, str]] = [
    ({"path": "/" + "a" * 8192}, 414, "uri_too_long"),
    ({"path": "/health?" + "a" * 8185}, 414, "uri_too_long"),
    ({"headers": {"x-a": "b" * 65_536}}, 431, "headers_too_large"),
    ({"headers": [(b"x-%d" % i, b"b" * 1000) for i in range(70)]}, 431, "headers_too_large"),
    ({"version": "2"}, 505, "http_version_not_supported"),
    ({"version": "1.2"}, 505, "http_version_not_supported"),
    ({"headers": {"transfer-encoding": "gzip, chunked"}}, 400, "invalid_request"),
    ({"headers": {"transfer-encoding": "chunked, chunked"}}, 400, "invalid_request"),
    ({"headers": [(b"transfer-encoding", b"chunked")] * 2}, 400, "invalid_request"),
]


@pytest.mark.parametrize(("request_", "status", "code"), BAD_REQUESTS)
def test_a_head_that_is_too_much_or_in_doubt_is_refused_and_closed(
    request_: dict[str, Any], status: int, code: str
) -> None:
    client = answered(World(), **{"path": "/health", "key": None, **request_})
    assert (client.status, client.code) == (status, code)
    assert client.headers[b"connection"] == b"close"


def test_what_is_just_small_enough_passes() -> None:
    assert answered(World(), "GET", "/health?" + "a" * 8184).status == 200
    assert answered(World(), "GET", "/health", headers={"x-a": "b" * 65_000}).status == 200
    assert answered(World(), "GET", "/health", version="1").status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:3560", 200),
        ("[::1]:3560", 200),
        ("attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("192.168.1.5", 421),
        ("169.254.169.254", 421),
        ("0.0.0.0", 421),
        (None, 400),
        ("", 400),
        ("localhost, localhost", 400),
        ("a@localhost", 400),
        ("localhost/x", 400),
        ("localhost:99999", 400),
        ("localhost:", 400),
        ("[::1", 400),
        ("[::1]x", 400),
    ],
)
def test_only_its_own_host_is_answered(host: str | None, status: int) -> None:
    client = answered(World(), "GET", "/health", key=None, host=host)
    assert client.status == status
    assert client.status == 200 or client.code == {400: "invalid_request", 421: "host_not_allowed"}[status]


def test_two_hosts_are_none() -> None:
    client = answered(World(), "GET", "/health", headers={"host": "localhost"})
    assert (client.status, client.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:3560"}, 200),
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-site"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://attacker.example"}, 403),
        ({"origin": "http://localhost.attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "file://"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://localhost", "sec-fetch-site": "cross-site"}, 403),
        ([(b"origin", b"http://localhost"), (b"origin", b"http://localhost")], 403),
    ],
)
def test_what_pages_of_other_sites_send_unasked_is_refused(headers: Any, status: int) -> None:
    """A simple request, as a form makes it: no preflight allows it, and no page can add a key to it."""
    world = World()
    client = answered(world, "POST" if status == 403 else "GET", "/health" if status == 200 else CHAT,
                      headers=headers, key=None)  # fmt: skip
    assert client.status == status
    assert client.code == "origin_not_allowed" if status == 403 else True
    assert world.lines[0]["api_key_id"] is None


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "text/plain"}, 415, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"content-type": "application/jsonx"}, 415, "unsupported_media_type"),
        ({"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"content-encoding": "identity, gzip"}, 415, "unsupported_media_type"),
        ({"content-type": "Application/JSON ; charset=utf-8"}, 404, "model_not_found"),
        ({"content-type": ""}, 404, "model_not_found"),  # none at all is taken for JSON
        ({"content-encoding": "identity"}, 404, "model_not_found"),
    ],
)
def test_only_plain_json_is_read(headers: dict[str, str], status: int, code: str) -> None:
    client = answered(World(), "POST", CHAT, chat("nothing"), headers=headers)
    assert (client.status, client.code) == (status, code)


def test_a_post_without_any_framing_is_411() -> None:
    client = answered(World(), "POST", CHAT)
    assert (client.status, client.code) == (411, "length_required")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_request", None),
        (b"{", "invalid_request", None),
        (b"[]", "invalid_request", None),
        (b"\xff", "invalid_request", None),
        (b"[" * 10_000, "invalid_request", None),
        (b'{"model":"m","stream":"yes"}', "invalid_request", "stream"),
        (b'{"model":"m","stream_options":3}', "invalid_request", "stream_options"),
        (b"{}", "invalid_model", "model"),
        (b'{"model":""}', "invalid_model", "model"),
        (b'{"model":3}', "invalid_model", "model"),
        (b'{"model":"flm://"}', "invalid_model", "model"),
        (b'{"model":"flm://e"}', "invalid_model", "model"),
        (b'{"model":"flm://e/"}', "invalid_model", "model"),
        (b'{"model":"flm:///m"}', "invalid_model", "model"),
        (b'{"model":"flm://e/m\\u0000"}', "invalid_model", "model"),
    ],
)
def test_bad_json_and_bad_models_are_400(body: bytes, code: str, param: str | None) -> None:
    client = answered(World(engine(NOWHERE)), "POST", CHAT, body)
    assert (client.status, client.code, client.error["param"]) == (400, code, param)


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("flm://x/m", 404, "engine_not_found"),
        ("flm://' OR 1=1 --/m", 400, "invalid_model"),
        ("flm://'%s'/m", 404, "engine_not_found"),
        ("flm://e/x", 404, "model_not_found"),
        ("x", 404, "model_not_found"),
        ("flm://down/m", 503, "engine_unavailable"),
        ("only-down", 503, "engine_unavailable"),
        ("flm://e/m", 503, "engine_unavailable"),
        ("alias-to-nothing", 404, "engine_not_found"),
    ],
)
def test_where_no_model_is(model: str, status: int, code: str) -> None:
    down = engine(NOWHERE, name="down", models=["only-down"], status="ErrorNetwork", last_error="refused thrice")
    world = World(engine(NOWHERE), down, aliases={"alias-to-nothing": "flm://gone/m"})
    client = answered(world, "POST", CHAT, chat(model))
    assert (client.status, client.code) == (status, code)
    if "down" in model:
        assert "refused thrice" in client.error["message"]


def test_models_lists_what_healthy_engines_have_under_full_ids() -> None:
    world = World(
        engine(NOWHERE, models=["a/b:7b", "m"]), engine(NOWHERE, name="down", models=["x"], status="ErrorApi")
    )
    client = answered(world, "GET", "/v1/models")
    assert [entry["id"] for entry in _json(client)["data"]] == ["flm://e/a/b:7b", "flm://e/m"]
    entry = _json(client)["data"][0]
    assert set(entry) >= {"engine_id", "name", "context_length", "trained_context_length", "loaded", "capabilities"}
    assert entry["object"] == "model"


@pytest.mark.parametrize(
    "name", ["flm://e/a/b:7b", "flm%3A%2F%2Fe%2Fa%2Fb%3A7b", "flm:%2f%2fe/a/b:7b", "a/b:7b", "a%2Fb:7b"]
)
def test_one_model_is_found_by_its_id_clear_or_encoded(name: str) -> None:
    client = answered(World(engine(NOWHERE, models=["a/b:7b"])), "GET", "/v1/models/" + name)
    assert (client.status, _json(client)["id"]) == (200, "flm://e/a/b:7b")


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("x", 404, "model_not_found"), ("flm://x/y", 404, "engine_not_found"), ("flm://", 400, "invalid_model"),
     ("%ff", 400, "invalid_model"), ("%252F", 404, "model_not_found")],
)  # fmt: skip
def test_one_model_that_is_not_there(name: str, status: int, code: str) -> None:
    client = answered(World(engine(NOWHERE)), "GET", "/v1/models/" + name)
    assert (client.status, client.code) == (status, code)


def test_one_model_by_any_of_its_names_and_by_head() -> None:
    model = Model("Org/m:7b", 512, 4096, loaded=False, capabilities=("completion",), other_names=("m",), any_case=True)
    world = World(
        msgspec.structs.replace(engine(NOWHERE), models=(model,)),
        aliases={"mine/own": "flm://e/Org/m:7b", "mine%2Fown": "m", "nowhere": "flm://gone/m"},
    )
    for name in ("m", "M", "org/M:7B", "flm://e/ORG/m:7b", "flm:%2F%2Fe%2Forg%2Fm:7b"):
        client = answered(world, "GET", "/v1/models/" + name)
        assert (client.status, _json(client)["id"]) == (200, "flm://e/Org/m:7b"), name
    for path, alias in (("mine/own", "mine/own"), ("mine%2Fown", "mine/own"), ("mine%252Fown", "mine%2Fown")):
        entry = _json(answered(world, "GET", "/v1/models/" + path))
        assert (entry["id"], entry["engine_id"], entry["name"]) == (alias, "e", "Org/m:7b")
        assert (entry["context_length"], entry["trained_context_length"], entry["loaded"]) == (512, 4096, False)
    assert answered(world, "GET", "/v1/models/nowhere").status == 404
    head = answered(world, "HEAD", "/v1/models/mine/own")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers[b"content-length"]) == len(answered(world, "GET", "/v1/models/mine/own").body)


def test_aliases_that_lead_somewhere_are_listed() -> None:
    aliases = {"b": "flm://e/m", "a": "m", "gone": "flm://x/m", "down": "flm://down/x"}
    world = World(engine(NOWHERE), engine(NOWHERE, name="down", models=["x"], status="ErrorNetwork"), aliases=aliases)
    entries = _json(answered(world, "GET", "/v1/models"))["data"]
    assert [entry["id"] for entry in entries] == ["flm://e/m", "a", "b"]
    assert {(entry["engine_id"], entry["name"], entry["object"]) for entry in entries} == {("e", "m", "model")}


def test_a_change_is_in_force_for_the_next_request() -> None:
    world = World()
    assert answered(world, "GET", "/v1/models/m").status == 404
    world.publish(engine(NOWHERE))
    assert answered(world, "GET", "/v1/models/m").status == 200


def test_a_revoked_key_is_refused_by_the_next_request() -> None:
    world = World()
    assert answered(world, "GET", "/v1/models").status == 200
    world.keyring.remove(world.key[4:16])
    assert answered(world, "GET", "/v1/models").status == 401


def test_an_answer_while_draining_closes_its_connection() -> None:
    world = World()
    assert b"connection" not in answered(world, "GET", "/health").headers
    world.app.drain()
    assert answered(world, "GET", "/health").headers[b"connection"] == b"close"


def test_a_fault_of_ours_is_500_and_logged_without_its_text() -> None:
    world = World()
    answered(world, "GET", "/health")
    world.shared.publish(b"not a snapshot: secret-canary")
    client = answered(world, "GET", "/health")
    assert (client.status, client.code) == (500, "internal_error")
    assert client.headers[b"x-should-retry"] == b"false"
    fault = world.lines[-2]
    assert (fault["event"], fault["request_id"]) == ("internal_error", client.error["request_id"])
    assert fault["where"]
    assert b"canary" not in b"".join(world.raw)


def _json(client: Client) -> Any:
    return json.loads(client.body)
