"""Which certificate, and with which settings, workers are told to serve while both change."""

from __future__ import annotations

import asyncio

from flm.config import Mode, Settings, resolve
from flm.runtime.boot import Served, Tls
from flm.runtime.front import Front, Step
from flm.runtime.handle import CertificateLine
from flm.tls.pair import Pair, read
from flm.tls.plain import Site
from tests.tls.issuing import make


def pair() -> Pair:
    issued = make("a.example", ("a.example",), by=make("CA", ca=True))
    return read(issued.key_pem + issued.chain)


class Renewed:
    """A keeper that has another pair at the first look."""

    mode: Mode = "https-acme"
    last_error: str | None = None

    def __init__(self) -> None:
        self.pair: Pair | None = None
        self.next = pair()

    async def obtain(self, settings: Settings, step: Step) -> Pair:
        raise AssertionError("it is resumed")

    async def resume(self, pair: Pair) -> None:
        self.pair = pair

    async def look(self, settings: Settings) -> None:
        self.pair = self.next

    def pause(self) -> float:
        return 600.0

    def line(self) -> CertificateLine | None:
        return None

    async def close(self) -> None:
        pass


def settings(version: str) -> Settings:
    return resolve({"tls.min_version": version}, {}, {"proxy.mode": "https-acme", "acme.domain": "a.example"}).settings


def test_a_reload_in_the_middle_of_a_renewal_is_not_undone_by_it() -> None:
    async def main() -> None:
        keeper, served, done = Renewed(), list[Tls](), asyncio.Event()

        async def swap(tls: Tls, _seconds: float) -> None:
            served.append(tls)
            if len(served) == 1:
                front.renewed_for(settings("1.2"))  # what a reload does
            else:
                done.set()

        def keeper_of(_mode: Mode, _site: Site) -> Renewed:
            return keeper

        front = Front(keeper_of, swap)
        before = pair()
        await front.adopt(settings("1.3"), "https-acme", Tls(before.pem, "1.3", ("a.example",), hsts=True), [])
        front.start()
        async with asyncio.timeout(10):
            await done.wait()
        await front.close()
        assert [(tls.pem, tls.min_version) for tls in served] == [(keeper.next.pem, "1.3"), (keeper.next.pem, "1.2")]

    asyncio.run(main())


def test_what_is_wrong_with_what_is_served_is_the_proxys_last_error() -> None:
    class Early(Renewed):
        def line(self) -> CertificateLine | None:
            return CertificateLine("https-acme", [], None, None, None, None, None, None, "the clock", True, None)

    async def main() -> None:
        front = Front(lambda mode, site: Early(), lambda tls, seconds: asyncio.sleep(0))
        assert front.error() is None
        await front.adopt(settings("1.3"), "https-acme", Tls(pair().pem, "1.3", ("a.example",), hsts=True), [])
        assert front.error() == "the clock"
        await front.close()

    asyncio.run(main())


def test_a_fallback_to_plain_http_is_told_after_a_restart_too() -> None:
    async def main() -> None:
        front = Front(lambda mode, site: Renewed(), lambda tls, seconds: asyncio.sleep(0))
        asked = Served("https-acme", "*", 80, 443)
        await front.adopt(asked.settings(), "local-http", None, [])
        assert "local-http is served instead" in (front.error() or "")
        await front.adopt(Settings(), "local-http", None, [])
        assert front.error() is None

    asyncio.run(main())


def test_behind_a_fallback_the_next_try_is_that_at_the_authority() -> None:
    class Local(Renewed):
        mode: Mode = "dev-selfsigned"

        def line(self) -> CertificateLine | None:
            return CertificateLine(
                "dev-selfsigned", ["l"], None, None, None, "r", "made", "in weeks", None, False, None
            )

    class Refused(Renewed):
        async def resume(self, pair: Pair) -> None:
            raise AssertionError("it has nothing to serve")

        def line(self) -> CertificateLine | None:
            return CertificateLine("https-acme", [], None, None, None, None, "asked", "in minutes", "no", False, None)

    async def main() -> None:
        keepers = {"dev-selfsigned": Local(), "https-acme": Refused()}
        front = Front(lambda mode, site: keepers[mode], lambda tls, seconds: asyncio.sleep(0))
        await front.adopt(settings("1.3"), "dev-selfsigned", Tls(pair().pem, "1.3", ("a.example",), hsts=False), [])
        line = front.line()
        assert line is not None
        assert (line.mode, line.domains, line.renew_after) == ("dev-selfsigned", ["l"], "r")
        assert (line.last_attempt_at, line.next_attempt_at) == ("asked", "in minutes")
        keepers["https-acme"].pair = pair()
        assert (front.line() or line).mode == "https-acme"
        await front.close()

    asyncio.run(main())
