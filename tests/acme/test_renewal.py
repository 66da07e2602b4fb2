"""Renewal information (RFC 9773): the window a CA asks for, and the certificate that an order replaces."""

from __future__ import annotations

import time

from flm.tls.pair import Pair
from tests.acme.conftest import NewClient
from tests.acme.harness import Client, refused, run
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, edited


def _leaf(pair: Pair) -> str:
    end = "-----END CERTIFICATE-----"
    return pair.chain_pem.decode().partition(end)[0] + end


async def _window(client: Client, pair: Pair) -> tuple[float, float, float] | None:
    return await client.window(replaces=pair.chain_pem.decode())


def test_the_window_is_the_cas(ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            pair = await one.issue(profile="classic")
            start, end, again = await _window(one, pair) or (0.0, 0.0, 0.0)
            assert pair.not_before < start < end < pair.not_after
            assert again == 21_600
            ca.set_renewal(
                _leaf(pair),
                '{"suggestedWindow": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00+01:00"}}',
            )
            start, end, _ = await _window(one, pair) or (0.0, 0.0, 0.0)
            assert (start, end) == (1_767_225_600.0, 1_767_225_600.0)

    run(scenario())


def test_a_window_that_is_no_window_is_refused_in_words(ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            pair = await one.issue()
            for text in ("garbage", "{}", '{"suggestedWindow": {"start": "yesterday", "end": "tomorrow"}}'):
                ca.set_renewal(_leaf(pair), text)
                no = await refused(_window(one, pair))
                assert no.kind == "server"
                assert "not a renewal window" in no.message

    run(scenario())


def test_a_ca_without_windows_has_none(front: Front, client: NewClient) -> None:
    front.always("directory", edited(lambda document: document.pop("renewalInfo")))

    async def scenario() -> None:
        async with client(front) as one:
            pair = await one.issue()
            assert await _window(one, pair) is None
            await one.issue(replaces=pair.chain_pem.decode())
            assert all("replaces" not in each.payload for each in front.seen if each.step == "order")

    run(scenario())


def test_an_order_says_what_it_replaces_and_goes_on_where_that_is_refused(front: Front, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(front) as one:
            old = await one.issue()
            new = await one.issue(replaces=old.chain_pem.decode())
            assert new.serial != old.serial
            again = await one.issue(replaces=old.chain_pem.decode())  # the CA: it has been replaced
            assert again.serial != new.serial
            orders = [("replaces" in each.payload, each.status) for each in front.seen if each.step == "order"]
            made = [each for each in orders if each[1] != 400]  # those with a refused nonce
            assert made == [(False, 201), (True, 201), (True, 409), (False, 201)]

    run(scenario())


def test_the_certificate_of_another_ca_can_be_replaced_here(ca: Ca, calm_ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(calm_ca, "calm") as one:
            old = await one.issue()
        async with client(ca, "ca") as other:
            new = await other.issue(replaces=old.chain_pem.decode())
            assert new.not_after > time.time()

    run(scenario())
