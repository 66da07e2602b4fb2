"""Who gets in and how much, as a request meets it: addresses, hosts and pages before the key, limits behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flm.config import Settings
from flm.policy.document import Policy, RateLimit
from flm.proxy.gate import Gate
from flm.proxy.respond import ALWAYS
from flm.proxy.view import View
from flm.snapshot import Snapshot
from tests.proxy.harness import CHAT, Client, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, receive, say, stall

MODELS = "/v1/models"
SITE = "https://app.example"
LISTED = Policy(allowed_origins=(SITE,))
SLOW = RateLimit(1, 2)  # two at once, then one a minute: no test lasts that long
LIMIT, LEFT, RESET = (b"x-ratelimit-" + name + b"-requests" for name in (b"limit", b"remaining", b"reset"))
OWN = b"access-control-allow-origin"


def asked(world: World, path: str = MODELS, method: str = "GET", **more: Any) -> Client:
    client: Client | None = None

    async def test() -> None:
        nonlocal client
        client = await world.ask(method, path, **more)

    run(test())
    assert client is not None
    return client


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [MODELS, "/health", "/nothing", CHAT, "/engine/e/api"])
@pytest.mark.parametrize("key", ["", "flm_bad", None])
def test_an_address_outside_learns_nothing_of_keys(path: str, key: str | None) -> None:
    world = World(policy=Policy(ip_whitelist=("10.0.0.0/8", "fd00::/8")))
    client = asked(world, path, "POST", key=key, body=chat("m"), address="192.0.2.7")
    assert (client.status, client.code) == (403, "ip_not_allowed")
    assert client.error["message"] == "requests from this address are not allowed here"
    assert world.lines[0]["api_key_id"] is None
    assert world.lines[0]["client_ip"] == "192.0.2.7"
    assert world.buckets.live(0, 10) == []  # a bad key was not even looked at


def test_a_body_from_outside_is_not_waited_for() -> None:
    async def test() -> None:
        world = World(policy=Policy(ip_whitelist=("10.0.0.0/8",)))
        client = world.client("POST", CHAT, body=chat("m"), headers={"content-length": "9999999"}, hold=True)
        await client.begin()
        assert (client.status, client.headers[b"connection"]) == (403, b"close")
        assert client.receives == 0

    run(test())


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::9"])
def test_an_address_inside_gets_in(address: str) -> None:
    world = World(policy=Policy(ip_whitelist=("10.0.0.0/8", "fd00::/8")))
    assert asked(world, address=address).status == 200
    assert world.lines[0]["client_ip"] == address.removeprefix("::ffff:")


PROXIES = ("127.0.0.1", "10.0.0.0/8")


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"x-forwarded-for": "6.6.6.6, 192.0.2.7, 10.0.0.2"}, "192.0.2.7"),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7"}, "127.0.0.1"),
        ("127.0.0.1", [(b"x-forwarded-for", b"192.0.2.7"), (b"x-forwarded-for", b"10.0.0.2")], "192.0.2.7"),
        ("192.0.2.1", {"x-forwarded-for": "127.0.0.1"}, "192.0.2.1"),
        ("127.0.0.1", {"x-real-ip": "192.0.2.7"}, "127.0.0.1"),
    ],
)
def test_the_client_behind_trusted_proxies(peer: str, headers: Any, client: str) -> None:
    world = World(policy=Policy(trusted_proxies=PROXIES))
    asked(world, headers=headers, address=peer)
    assert world.lines[0]["client_ip"] == client


def test_the_allow_list_is_of_clients_not_of_proxies() -> None:
    world = World(policy=Policy(trusted_proxies=PROXIES, ip_whitelist=("192.0.2.0/24",)))
    assert asked(world, headers={"x-forwarded-for": "192.0.2.7"}).status == 200
    assert asked(world, headers={"x-forwarded-for": "6.6.6.6"}).status == 403
    assert asked(world).status == 403
    assert asked(world, address="6.6.6.6", headers={"x-forwarded-for": "192.0.2.7"}).status == 403


@pytest.mark.parametrize(
    ("peer", "given", "taken"),
    [
        ("127.0.0.1", "req-1.a_b:c", True),
        ("192.0.2.1", "req-1", False),
        ("127.0.0.1", "two words", False),
        ("127.0.0.1", "a" * 129, False),
        ("127.0.0.1", "flm_AAAAAAAAAAAA_secret", False),
    ],
)
def test_a_trusted_proxy_may_name_a_request(peer: str, given: str, taken: bool) -> None:
    world = World(policy=Policy(trusted_proxies=PROXIES))
    client = asked(world, headers={"x-request-id": given}, address=peer)
    assert (client.headers[b"x-request-id"] == given.encode()) is taken
    assert (world.lines[0]["request_id"] == given) is taken


def test_nobody_names_requests_without_a_trusted_proxy() -> None:
    assert asked(World(), headers={"x-request-id": "mine"}).headers[b"x-request-id"] != b"mine"


# --- hosts and pages --------------------------------------------------------------------------------------------------


def test_the_policy_names_further_hosts() -> None:
    world = World(policy=Policy(allowed_hosts=("flm.example.com",)))
    assert asked(world, host="flm.example.com:443").status == 200
    assert asked(world, host="FLM.Example.com").status == 200
    assert asked(world, host="localhost").status == 200
    refused = asked(world, host="evil.example.com")
    assert (refused.status, refused.code) == (421, "host_not_allowed")
    assert b"evil" not in refused.body


def preflight(world: World, origin: str, path: str = CHAT, **more: Any) -> Client:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    return asked(world, path, "OPTIONS", headers=headers | more.pop("headers", {}), key=None, **more)


@pytest.mark.parametrize("path", [CHAT, MODELS, "/engine/e/api/chat", "/nothing"])
def test_a_preflight_is_answered_before_authentication(path: str) -> None:
    world = World(policy=LISTED)
    client = preflight(world, SITE, path)
    assert (client.status, client.body, client.complete) == (204, b"", True)
    headers = client.headers
    assert headers[OWN] == SITE.encode()
    assert b"POST" in headers[b"access-control-allow-methods"]
    assert headers[b"access-control-allow-headers"] == b"authorization, content-type"
    assert b"origin" in headers[b"vary"]
    assert b"access-control-allow-credentials" not in headers
    assert b"content-length" not in headers
    assert [name for name, _ in client.messages[0]["headers"]].count(OWN) == 1
    assert world.lines[0]["status"] == 204
    assert world.buckets.live(0, 10) == []


def test_without_a_list_every_origin_may_ask_and_none_with_credentials() -> None:
    world = World()
    headers = preflight(world, SITE).headers
    assert headers[OWN] == b"*"
    assert b"access-control-allow-credentials" not in headers
    client = asked(world, headers={"origin": SITE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"})
    assert (client.status, client.headers[OWN]) == (200, b"*")
    assert b"access-control-allow-credentials" not in client.headers


@pytest.mark.parametrize(
    "origin", ["https://app.example.evil.com", "http://app.example", "https://APP.example", "null"]
)
def test_an_origin_that_is_not_listed(origin: str) -> None:
    world = World(policy=LISTED)
    for client in (preflight(world, origin), asked(world, headers={"origin": origin})):
        assert (client.status, client.code) == (403, "origin_not_allowed")
        assert OWN not in client.headers
        assert client.headers[b"vary"] == b"origin"


def test_a_page_can_read_why_it_was_refused() -> None:
    world = World(policy=LISTED)
    for more, status in (({"key": None}, 401), ({"path": "/nothing"}, 404), ({"host": "evil.example"}, 421)):
        client = asked(world, headers={"origin": SITE}, **more)  # type: ignore[arg-type]
        assert (client.status, client.headers[OWN]) == (status, SITE.encode())


def test_options_without_an_origin_need_a_key() -> None:
    world = World()
    assert asked(world, CHAT, "OPTIONS", key=None).status == 401
    assert asked(world, CHAT, "OPTIONS", key=None, headers={"access-control-request-method": "POST"}).status == 401


def test_a_preflight_from_outside_is_refused() -> None:
    world = World(policy=Policy(ip_whitelist=("10.0.0.0/8",)))
    assert preflight(world, SITE).status == 403
    assert preflight(world, SITE, address="10.0.0.1").status == 204
    assert preflight(world, SITE, address="10.0.0.1", host="evil.example").status == 421


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 200),
        ({"key": None}, 401),
        ({"path": "/nothing"}, 404),
        ({"path": "/health"}, 200),
        ({"method": "DELETE"}, 405),
        ({"version": "3"}, 505),
        ({"host": "evil.example"}, 421),
    ],
)
def test_every_answer_tells_browsers_to_keep_their_hands_off(more: dict[str, Any], status: int) -> None:
    client = asked(World(), **more)
    assert client.status == status
    names = [name for name, _ in client.messages[0]["headers"]]
    for name, value in ALWAYS:
        assert client.headers[name] == value
        assert names.count(name) == 1
    assert b"no-store" in client.headers[b"cache-control"]


def test_an_engine_does_not_speak_for_flm() -> None:
    async def test() -> None:
        theirs = b"cache-control: public, max-age=99\r\nx-frame-options: ALLOW\r\naccess-control-allow-origin: evil"
        async with ScriptedEngine([receive(), say(answer(200, b"{}", theirs)), stall()]) as scripted:
            client = await World(engine(scripted.url)).ask("GET", "/engine/e/x", headers={"origin": SITE})
            sent = client.messages[0]["headers"]
            assert [value for name, value in sent if name == b"cache-control"] == [b"no-cache, no-store"]
            assert [value for name, value in sent if name == b"x-frame-options"] == [b"DENY"]
            assert [value for name, value in sent if name == OWN] == [b"*"]
            await client.world.app.aclose()

    run(test())


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_key_has_its_limit_wherever_it_comes_from() -> None:
    world = World(policy=Policy(rate_limit=SLOW))
    other = world.add_key()
    seen = [asked(world, address=f"192.0.2.{number}") for number in range(3)]
    assert [client.status for client in seen] == [200, 200, 429]
    assert [client.headers[LIMIT] for client in seen] == [b"2"] * 3
    assert [client.headers[LEFT] for client in seen] == [b"1", b"0", b"0"]
    assert [client.headers[RESET] for client in seen] == [b"60", b"120", b"120"]
    assert seen[2].headers[b"retry-after"] == b"60"
    assert (seen[2].code, seen[2].error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert world.lines[2]["api_key_id"] == world.lines[0]["api_key_id"] is not None
    assert asked(world, key=other).status == 200


def test_an_address_has_its_limit_whatever_key_it_has() -> None:
    world = World(policy=Policy(ip_rate_limit=SLOW))
    keys = [world.add_key() for _ in range(3)]
    assert [asked(world, key=key, address="192.0.2.1").status for key in keys] == [200, 200, 429]
    assert asked(world, address="192.0.2.2").status == 200
    assert asked(world, address="::ffff:192.0.2.1").status == 429


def test_ipv6_counts_by_its_64_bit_network() -> None:
    world = World(policy=Policy(ip_rate_limit=SLOW))
    assert [asked(world, address=f"2001:db8:1:2:{n}::9").status for n in range(3)] == [200, 200, 429]
    assert asked(world, address="2001:db8:1:3::9").status == 200


def test_the_limit_of_an_address_is_of_the_client_behind_the_proxy() -> None:
    world = World(policy=Policy(ip_rate_limit=SLOW, trusted_proxies=PROXIES))
    for client in ("192.0.2.1", "192.0.2.2"):
        seen = [asked(world, headers={"x-forwarded-for": client}).status for _ in range(3)]
        assert seen == [200, 200, 429]


def test_all_together_have_a_limit_and_what_it_refuses_costs_a_key_nothing() -> None:
    world = World(policy=Policy(global_rate_limit=SLOW, rate_limit=RateLimit(1, 9)))
    key = world.add_key()
    assert [asked(world, key=key).status for _ in range(4)] == [200, 200, 429, 429]
    world.publish(policy=Policy(rate_limit=RateLimit(1, 9)))
    assert asked(world, key=key).headers[LEFT] == b"6"


def test_an_error_behind_the_limit_says_what_is_left_and_one_before_it_costs_nothing() -> None:
    world = World(policy=Policy(rate_limit=SLOW))
    assert OWN not in asked(world, key=None).headers
    assert asked(world, host="evil.example").status == 421
    client = asked(world, "/nothing")
    assert (client.status, client.headers[LEFT]) == (404, b"1")


def test_public_routes_are_not_limited_and_without_a_limit_nothing_is_said_of_one() -> None:
    world = World(policy=Policy(rate_limit=SLOW, ip_rate_limit=SLOW, global_rate_limit=SLOW))
    assert [asked(world, "/health", key=None).status for _ in range(5)] == [200] * 5
    assert LIMIT not in asked(World()).headers


def test_a_stream_carries_the_headers_and_a_refused_one_is_a_whole_answer() -> None:
    async def test() -> None:
        event = b'data: {"choices":[],"model":"m"}\n\ndata: [DONE]\n\n'
        stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + event
        async with ScriptedEngine([receive(), say(stream)]) as scripted:
            world = World(engine(scripted.url), policy=Policy(rate_limit=RateLimit(1, 1)))
            client = await world.chat("m", stream=True, headers={"origin": SITE})
            assert (client.status, client.headers[LEFT], client.headers[OWN]) == (200, b"0", b"*")
            assert client.headers[b"content-type"].startswith(b"text/event-stream")
            refused = await world.chat("m", stream=True)
            assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
            assert refused.headers[b"content-type"] == b"application/json"
            await world.app.aclose()

    run(test())


@pytest.mark.parametrize("key", [None, "nonsense", "revoked", "expired"])
def test_bad_keys_of_an_address_are_limited_and_good_ones_never_locked_out(key: str | None) -> None:
    world = World(policy=Policy(auth_failure_limit=RateLimit(60, 3)))
    bad = {
        "revoked": world.add_key(revoked=True),
        "expired": world.add_key(expires_at_ms=1),
    }.get(key or "", key)
    seen = [asked(world, key=bad, address="192.0.2.1") for _ in range(5)]
    assert [client.status for client in seen] == [401, 401, 401, 429, 429]
    assert seen[3].code == "rate_limit_exceeded"
    assert int(seen[3].headers[b"retry-after"]) >= 1
    assert b"www-authenticate" not in seen[3].headers
    assert asked(world, address="192.0.2.1").status == 200
    assert asked(world, key=bad, address="192.0.2.2").status == 401


def test_the_default_limits_bad_keys_only() -> None:
    world = World()
    assert [asked(world, key=None).status for _ in range(21)] == [401] * 20 + [429]
    assert [asked(world).status for _ in range(30)] == [200] * 30


def test_a_changed_policy_holds_for_the_next_request() -> None:
    world = World()
    assert asked(world).status == 200
    world.publish(policy=Policy(ip_whitelist=("10.0.0.0/8",)))
    assert asked(world).status == 403
    world.publish(policy=Policy(rate_limit=SLOW))
    assert asked(world).headers[LIMIT] == b"2"


def test_a_gate_is_kept_while_its_policy_is() -> None:
    async def test() -> None:
        def view(policy: Policy, former: Gate | None, **settings: Any) -> View:
            return View(1, Snapshot("i", Settings(**settings), (), {}, policy), {}, None, former)  # type: ignore[arg-type]

        first = view(LISTED, None).gate
        assert view(Policy(allowed_origins=(SITE,)), first).gate is first
        assert view(Policy(), first).gate is not first
        assert view(LISTED, first, proxy_bind="0.0.0.0").gate is not first

    asyncio.run(test())
