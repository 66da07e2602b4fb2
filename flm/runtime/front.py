"""What clients reach of a proxy: its listening sockets, the plain-HTTP port beside HTTPS, and the certificate served.

Strategy: one object for the life of a supervisor, in every mode. It opens the sockets, has a keeper provide the pair
that is served, and looks again when the keeper says so; a pair that has changed is swapped in by new workers, those
before it finish what they have begun. A pair that workers could not be started with stays wanted, and is tried again.

Knows the modes and what falls back to what; knows no database, no worker and nothing of how a certificate is got.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from flm.config import HTTP_PORT, Mode, Settings, domains
from flm.errors import CommandCode, CommandError
from flm.runtime import sockets
from flm.runtime.boot import Served, Tls
from flm.runtime.given import LOOPBACK, Opener
from flm.runtime.handle import Access, CertificateLine, local_url

if TYPE_CHECKING:
    from flm.runtime.plain import PlainListener
    from flm.tls.pair import Pair
    from flm.tls.plain import Site

RENEWAL_DRAIN_SECONDS: Final = 3600.0  # a renewal is in no hurry: the pair of before is good for days
PLAIN_SEND_SECONDS: Final = 5.0  # as long as a connection to the plain port may last
PLAIN_GRACE_SECONDS: Final = 0.5  # for those connections when this process replaces itself, or ends
AGAIN_SECONDS: Final = 5.0  # after workers could not be started with a new pair

Step = Callable[[str, str], None]
Swap = Callable[[Tls, float], Awaitable[None]]

log = logging.getLogger("flm.supervisor")


class Keeper(Protocol):
    """Who provides the pair of one mode. `mode`: what status calls it. `pair`: the one that is good at the moment."""

    mode: Mode
    pair: Pair | None
    last_error: str | None

    async def obtain(self, settings: Settings, step: Step) -> Pair:
        """The pair to start with, however long that takes; `step` is told what happens. Raises CommandError."""
        ...

    async def resume(self, pair: Pair) -> None:
        """Go on with a pair that is served already. Never raises CommandError."""
        ...

    async def look(self, settings: Settings) -> None:
        """Renew what is due. Never raises CommandError: what went wrong is `last_error`."""
        ...

    def pause(self) -> float:
        """Seconds until the next look."""
        ...

    def line(self) -> CertificateLine | None:
        """What status says of the certificate."""
        ...

    async def close(self) -> None: ...


class Front:
    """The front of one supervisor. `keeper_of` makes the keeper of a mode; `swap` has new workers serve a `Tls`, those
    before them having so many seconds to finish; `opener` opens the sockets."""

    def __init__(self, keeper_of: Callable[[Mode, Site], Keeper], swap: Swap, opener: Opener | None = None) -> None:
        self._keeper_of = keeper_of
        self._swap = swap
        self._opener = opener or Opener()
        self._settings = Settings()
        self._site: Site | None = None
        self._plain: PlainListener | None = None
        self._plain_sockets: list[socket.socket] = []
        self._keeper: Keeper | None = None
        self._spare: Keeper | None = None  # provides what is served while the keeper has nothing
        self._served: Pair | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self.mode: Mode = "local-http"
        self.tls: Tls | None = None
        self.last_error: str | None = None

    # --- opening -----------------------------------------------------------------------------------------------

    def open(self, settings: Settings) -> list[socket.socket]:
        """Bind everything that `settings` ask for; the sockets for the workers. Raises CommandError; then none is."""
        self._settings, self.mode = settings, settings.proxy_mode
        self._opener.refuse_misfits(settings)
        if settings.proxy_mode == "local-http":
            return self._opener.open_for(settings)
        if settings.proxy_mode == "https-acme" and not domains(settings):
            raise CommandError(CommandCode.PROXY_INVALID_CONFIG, _NO_DOMAIN)
        if settings.proxy_https_port == settings.proxy_port:
            raise CommandError(CommandCode.PROXY_INVALID_CONFIG, _SAME_PORT)
        self._plain_sockets = self._opener.open(settings.proxy_bind, settings.proxy_port, 1, PLAIN_SEND_SECONDS)
        try:
            return self._opener.open_for(settings)
        except CommandError:
            self._close_plain()
            raise

    async def obtain(self, settings: Settings, step: Step) -> list[socket.socket] | None:
        """Have a pair to serve, or what `proxy.fallback` says instead: then perhaps with other sockets, returned.

        Raises CommandError with the reason of the last failure.
        """
        if settings.proxy_mode == "local-http":
            return None
        keeper = self._begin(settings)
        try:
            self._take(settings, await keeper.obtain(settings, step))
        except CommandError as error:
            return await self._fall_back(settings, keeper, error, step)
        return None

    async def adopt(self, settings: Settings, mode: Mode, tls: Tls | None, plain: list[socket.socket]) -> None:
        """Go on where the former image of this process left. `settings`: those it was at, which may lack all but mode
        and address; the whole ones come with `renewed_for`."""
        self._settings, self.mode, self._plain_sockets = settings, mode, plain
        if tls is None:
            self.last_error = _FELL_BACK if mode != settings.proxy_mode else None
            return
        from flm.tls.pair import read

        self.tls, self._served = tls, read(tls.pem)
        keeper = self._begin(settings)
        if mode != settings.proxy_mode:
            keeper = self._spare = self._keeper_of(mode, self._open_site(settings))
        self._open_site(settings).names = self._site_names(settings, self._served)
        await keeper.resume(self._served)

    def _begin(self, settings: Settings) -> Keeper:
        self._keeper = self._keeper_of(settings.proxy_mode, self._open_site(settings))
        self._open_plain()
        return self._keeper

    def _open_plain(self) -> None:
        from flm.runtime.plain import PlainListener

        if self._plain is None and self._site is not None:
            self._plain = PlainListener(self._plain_sockets, self._site)
            self._plain.start()

    async def _leave_plain(self) -> None:
        if self._plain is not None:
            plain, self._plain = self._plain, None
            await plain.close(PLAIN_GRACE_SECONDS)

    def _open_site(self, settings: Settings) -> Site:
        from flm.tls.plain import Site

        if self._site is None:
            self._site = Site(domains(settings) or ("localhost",), settings.proxy_https_port, {})
        return self._site

    async def _fall_back(
        self, settings: Settings, keeper: Keeper, error: CommandError, step: Step
    ) -> list[socket.socket] | None:
        fallback = settings.proxy_fallback
        if settings.proxy_mode != "https-acme" or fallback == "none":
            raise error
        self.last_error = f"{error.message}; {fallback} is served instead{_AND[fallback]}"
        log.error("%s", self.last_error)
        step("fallback", f"no certificate: {fallback} is served instead")
        self.mode = fallback
        if fallback == "dev-selfsigned":
            self._spare = self._keeper_of("dev-selfsigned", self._open_site(settings))
            self._take(settings, await self._spare.obtain(settings, step))
            return None
        await keeper.close()
        self._keeper = None
        await self.close()
        exposed = settings.proxy_bind if settings.proxy_expose_fallback else LOOPBACK
        patience = sockets.kernel_patience(settings)
        return self._opener.open(exposed, settings.proxy_port, settings.proxy_workers, patience)

    # --- serving -----------------------------------------------------------------------------------------------

    def renewed_for(self, settings: Settings) -> Tls | None:
        """What workers that are started under `settings` serve with; changes of the names are looked at at once."""
        self._settings = settings
        if self._served is not None:
            self.tls = self._tls(settings, self._served)
        self.look_now()
        return self.tls

    def look_now(self) -> None:
        """Have the keepers look without waiting for the next time."""
        self._wanted.set()

    def start(self) -> None:
        """Begin to renew, and answer on the plain port."""
        if self._keeper is not None:
            self._open_plain()
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def end(self) -> None:
        """Stop renewing, and accept no more on the plain port, whose connections wait; what is served goes on."""
        await self._leave_plain()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None

    async def close(self) -> None:
        """Nothing of the plain port is left, and nothing under way."""
        await self.end()
        for keeper in (self._keeper, self._spare):
            if keeper is not None:
                await keeper.close()
        self._close_plain()

    def plain_fds(self) -> list[int]:
        """The sockets of the plain port, to be passed on."""
        return [each.fileno() for each in self._plain_sockets]

    def line(self) -> CertificateLine | None:
        """What status says of the certificate that is served, or was to be. Behind a fallback its tries are those at
        the authority, which people wait for."""
        if self._keeper is None:
            return None
        wanted = self._keeper.line()
        if self._spare is None or self._keeper.pair is not None:
            return wanted
        shown = self._spare.line()
        if shown is None or wanted is None:
            return shown
        return msgspec.structs.replace(
            shown, last_attempt_at=wanted.last_attempt_at, next_attempt_at=wanted.next_attempt_at
        )

    def access(self, address: tuple[str, int], key: str) -> Access:
        """How this machine reaches sockets bound to `address` with `key`."""
        url = local_url(address, encrypted=self._served is not None)
        if self._served is None:
            return Access(url, key)
        end = b"-----END CERTIFICATE-----\n"
        leaf = (self._served.chain_pem.partition(end)[0] + end).decode("ascii")
        return Access(url, key, leaf, self._served.domains[0])

    def names(self) -> tuple[str, ...]:
        """What the certificate that is served is for."""
        return self._served.domains if self._served is not None else ()

    def error(self) -> str | None:
        """What went wrong last, while it is not mended."""
        renewal = self._keeper.last_error if self._keeper is not None else None
        line = self.line()
        return renewal or self.last_error or (line.last_error if line is not None else None)

    async def _renew(self) -> None:
        while True:
            self._wanted.clear()
            try:
                await self._look()
                pause = self._pause()
            except CommandError as error:
                self.last_error, pause = error.message, AGAIN_SECONDS
                log.error("the new certificate is not served yet: %s", error.message)
            except Exception:  # a fault of FLM's own must not end the renewing
                log.exception("renewing the certificate failed")
                pause = AGAIN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    def _pause(self) -> float:
        return min(keeper.pause() for keeper in (self._keeper, self._spare) if keeper is not None)

    async def _look(self) -> None:
        assert self._keeper is not None
        await self._keeper.look(self._settings)
        if self._keeper.pair is None and self._spare is not None:
            await self._spare.look(self._settings)
        source = self._keeper if self._keeper.pair is not None else self._spare
        if source is None or source.pair is None:
            return
        if self._served is not None and source.pair.fingerprint == self._served.fingerprint:
            return
        swapped: Tls | None = None
        while (tls := self._tls(self._settings, source.pair, source.mode)) != swapped:  # a reload may come between
            await self._swap(tls, RENEWAL_DRAIN_SECONDS)
            swapped = tls
        self._take(self._settings, source.pair, source.mode)
        self.last_error = None
        if source is self._keeper:
            self._spare = None
        log.info("a new certificate is served: %s, until %s", ", ".join(source.pair.domains), _until(source.pair))

    def _take(self, settings: Settings, pair: Pair, mode: Mode | None = None) -> None:
        self.mode = mode or self.mode
        self._served, self.tls = pair, self._tls(settings, pair, self.mode)
        if self._site is not None:
            self._site.names = self._site_names(settings, pair)

    def _site_names(self, settings: Settings, pair: Pair) -> tuple[str, ...]:
        """Where the plain port may send clients."""
        return (domains(settings) if self.mode == "https-acme" else ()) or pair.domains

    def _tls(self, settings: Settings, pair: Pair, mode: Mode | None = None) -> Tls:
        names = tuple(dict.fromkeys((*pair.domains, *domains(settings))))
        hsts = (mode or self.mode) == "https-acme" and not settings.acme_staging
        return Tls(pair.pem, settings.tls_min_version, names, hsts)

    def _close_plain(self) -> None:
        for each in self._plain_sockets:
            each.close()
        self._plain_sockets = []


def served_by(asked: Served, front: Front, address: str) -> Served:
    """What a proxy with this front listens on. `asked`: what was asked for at its start, whatever is stored since;
    `address`: what the workers' sockets are bound to."""
    if front.mode != "local-http" or asked.mode == "local-http":
        return asked
    bind = LOOPBACK if address == LOOPBACK else asked.bind
    return Served("local-http", bind, asked.port, 0)


def _until(pair: Pair) -> str:
    from flm.tls.pair import moment

    return moment(pair.not_after)


# The port that a CA calls is the one that plain HTTP is served on then, and its clients cannot be moved to HTTPS.
_GAVE_UP: Final = (
    ". Nobody goes on trying meanwhile, since the authority would call the port that plain HTTP has now: when the "
    "reason is mended, `flm proxy stop` and `flm proxy start` try again; a reload or restart does not. The fallback "
    "dev-selfsigned goes on trying by itself"
)
_AND: Final = {"local-http": _GAVE_UP, "dev-selfsigned": ", and it goes on trying"}
_FELL_BACK: Final = (
    "there was no certificate at the start (`flm security certificates list` says why), and local-http is served "
    f"instead{_GAVE_UP}"
)
_SAME_PORT: Final = (
    "proxy.port and proxy.https_port are one port, and plain HTTP and HTTPS need two; change one of them"
)
_NO_DOMAIN: Final = (
    "https-acme needs the name that the certificate is for: `flm proxy start --mode https-acme --acme-domain "
    "llm.example.com`, or `flm config set acme.domain llm.example.com`; the name has to lead to this machine, "
    f"whose port {HTTP_PORT} the certificate authority calls"
)
