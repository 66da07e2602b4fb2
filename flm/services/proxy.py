"""`ProxyService`: start, stop, restart, reload and look at the proxy of one data folder.

Strategy: one proxy per folder, proven by a lock that this service takes before it starts anything and hands on to the
supervisor; everything else is asked of the running supervisor on its control socket.

Knows processes and their control socket; knows no worker, no socket of clients but for one request that proves that a
start succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from flm.config import Value
from flm.disk.private import secure_folder
from flm.errors import CommandCode, CommandError
from flm.runtime import control, instance
from flm.runtime.boot import WORKER_MODULE, Given, SupervisorBoot
from flm.runtime.control import Request
from flm.runtime.given import settings_of
from flm.runtime.given import take_given as take_given
from flm.runtime.handle import Access, url_host
from flm.runtime.handle import Handle as Handle
from flm.runtime.instance import Instance
from flm.runtime.memory import orphans
from flm.services.launch import (
    GONE_SECONDS,
    POLL_SECONDS,
    START_SECONDS,
    AnotherCertificateError,
    Step,
    did_not_start,
    health,
    launch,
    within,
)
from flm.store.folder import Folder

CHANGE_SECONDS: Final = 180.0  # pre-flight check, exec and new workers, each with a bound of its own
RESPONSE_SECONDS: Final = 10.0  # of a supervisor that is alive; longer, and it is taken for hung
STOP_SECONDS: Final = 90_000.0  # `proxy.stop_timeout_seconds` may be a day, and the supervisor bounds it

log = logging.getLogger("flm.proxy")


class Stopped(msgspec.Struct, frozen=True):
    """The proxy that was stopped. `killed`: its supervisor no longer answered and had to be ended by force."""

    id: str
    pid: int
    port: int
    killed: bool = False


class Started(Handle, frozen=True, kw_only=True):
    """A proxy that was just started. `key`: only on the very first start, the API key that was made for it. Secret."""

    key: str | msgspec.UnsetType = msgspec.UNSET

    def __repr__(self) -> str:  # the default would print the secret
        return f"Started(id={self.id!r}, pid={self.pid}, listen_addr={self.listen_addr!r})"


class ProxyService:
    """The proxy of one data folder. `worker_module` is what each of its workers runs."""

    def __init__(self, folder: Folder, *, worker_module: str = WORKER_MODULE) -> None:
        self._folder = folder
        self._worker_module = worker_module
        self._socket = folder.run / "control.sock"

    async def start(
        self,
        flags: Mapping[str, Value] | None = None,
        *,
        first_key: bool = True,
        step: Step | None = None,
        given: Sequence[Given] = (),
    ) -> Started:
        """Start the proxy in the background and return once a request to it succeeds. `step` is told what a start that
        takes its time is at: a word, and a detail for people.

        `flags` are settings for this proxy that win over the database, also after `reload` and `restart`. `first_key`:
        make the key `default` if no key was ever made in this folder. `given`: sockets to listen on, where they are
        what the settings ask for (`take_given`). Raises PROXY_ALREADY_RUNNING,
        PROXY_PORT_IN_USE, PROXY_INVALID_CONFIG, PROXY_ACME_ERROR, PROXY_CERT_FAILED, CONFIG_INVALID, or an error of the
        databases; then nothing is left running.
        """
        lock = await self._take_lock()
        try:
            boot = self._boot({**settings_of(given), **(flags or {})}, lock, daemon=True, given=given)
            handle = await launch(boot, step or _keep_quiet)
        finally:
            os.close(lock)
        await self._prove(handle)
        return await self._started(handle, first_key=first_key)

    async def serve(
        self,
        flags: Mapping[str, Value] | None,
        ready: Callable[[Started], None],
        *,
        first_key: bool = True,
        step: Step | None = None,
        given: Sequence[Given] = (),
    ) -> None:
        """Be the proxy in this process until SIGTERM or SIGINT. `ready` is called once a request succeeds.

        Takes over this process's signals and logging; `restart` replaces its program by exec. `flags`, `first_key`,
        `step`, `given` and what is raised: as `start`.
        """
        from flm.runtime.supervisor import Supervisor

        async def tell(handle: Handle) -> None:
            ready(await self._started(handle, first_key=first_key))

        lock = await self._take_lock()
        try:
            boot = self._boot({**settings_of(given), **(flags or {})}, lock, daemon=False, given=given)
            await Supervisor(boot).run(tell, step or _keep_quiet)
        finally:
            os.close(lock)

    async def stop(self, *, port: int | None = None, now: bool = False) -> Stopped:
        """Stop the proxy and return when every process of it is gone.

        Running requests may finish for `proxy.stop_timeout_seconds`; `now` ends them at once. Either way what is left
        gets one error event. `port`, if given, must be the one it serves. The demo engine of the folder ends with it.
        Raises PROXY_NOT_RUNNING.
        """
        found = await self._settled()
        ports = [each for each in (found.port, found.https_port) if each]
        if port is not None and port not in ports:
            served = " and ".join(map(str, ports))
            raise CommandError(
                CommandCode.PROXY_NOT_RUNNING,
                f"the proxy of {self._folder.root} serves port {served}, not {port}; nothing was stopped",
            )
        killed = await self._trouble(found) is not None
        if killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(CommandError):  # it ended at that moment: what was wanted
                await control.ask(self._socket, Request("stop", now=now), STOP_SECONDS)
        await self._wait_until_gone(found)
        await self._end_demo()
        return Stopped(found.id, found.pid, found.port, killed)

    async def _end_demo(self) -> None:
        """The demo engine that FLM started has nobody left to answer."""
        if not await asyncio.to_thread((self._folder.run / "demo.json").exists):
            return
        from flm.services.demo import DemoService  # only here: few have one

        try:
            await DemoService(self._folder).stop()
        except CommandError as error:
            log.warning("the proxy stopped, and the demo engine is still there: %s", error.message)

    async def reload(self) -> Handle:
        """New settings and new workers, with no request refused or cut. Raises PROXY_NOT_RUNNING, or the reason why the
        old ones go on serving."""
        return await self._change("reload")

    async def restart(self) -> Handle:
        """As `reload`, and the supervisor becomes the version of FLM that is installed now, in the same process."""
        return await self._change("restart")

    async def status(self) -> list[Handle]:
        """The running proxy as a list of one, or an empty list. Raises IO_ERROR if that cannot be seen."""
        found = await asyncio.to_thread(instance.running, self._folder.run)
        if found is None:
            await asyncio.to_thread(instance.refuse_unseen, self._folder.run)
            return []
        try:
            return [_handle(await control.ask(self._socket, Request("status"), RESPONSE_SECONDS))]
        except TimeoutError:
            raise _hung(found) from None
        except CommandError as error:
            if error.code is not CommandCode.PROXY_NOT_RUNNING:
                raise
            if await asyncio.to_thread(self._is_cut_off, found):
                raise _cut_off(found) from None
            return []  # it ended meanwhile

    async def access(self) -> Access:
        """How to reach the running proxy from here, with a key that lives for minutes. Raises PROXY_NOT_RUNNING."""
        answer = await control.ask(self._socket, Request("chat-key"), RESPONSE_SECONDS)
        return msgspec.convert(answer, Access)

    # --- starting ----------------------------------------------------------------------------------------------

    async def _take_lock(self) -> int:
        for folder in (self._folder.root, self._folder.run):
            await asyncio.to_thread(secure_folder, folder)
        lock = await asyncio.to_thread(instance.acquire, self._folder.run)
        if lock is not None:
            return lock
        found = await asyncio.to_thread(instance.running, self._folder.run)
        if found is None:
            message = f"another `flm proxy start` or `stop` is at work in {self._folder.root}; wait for it"
        else:
            message = (
                f"a proxy runs already in {self._folder.root}: pid {found.pid}, {url_host(found.address)}:{found.port};"
                " `flm proxy stop` ends it, another FLM_HOME makes room for a second one"
            )
        raise CommandError(CommandCode.PROXY_ALREADY_RUNNING, message)

    async def _started(self, handle: Handle, *, first_key: bool) -> Started:
        from flm.services.security import SecurityService

        security = SecurityService(self._folder)
        key = await security.ensure_default_key() if first_key else None
        if not first_key and not await security.list_keys():
            log.warning(
                "there is no API key yet, and nothing to show one on; `flm api-keys create --label NAME` makes one"
            )
        if in_clear(handle.mode, handle.listen_addr):
            log.warning(
                "%s is plain HTTP: whoever is on the way can read keys, prompts and answers; `--mode dev-selfsigned`"
                " or `--mode https-acme` encrypts them",
                handle.listen_addr,
            )
        return Started(**msgspec.structs.asdict(handle), key=key.key if key else msgspec.UNSET)

    def _boot(self, flags: dict[str, Value], lock: int, *, daemon: bool, given: Sequence[Given]) -> SupervisorBoot:
        folder = self._folder
        return SupervisorBoot(
            root=str(folder.root),
            config=str(folder.config),
            security=str(folder.security),
            flags=flags,
            lock_fd=lock,
            daemon=daemon,
            worker_module=self._worker_module,
            given=tuple(given),
        )

    async def _prove(self, handle: Handle) -> None:
        """One request, as a client would send it."""
        host, _, port = handle.listen_addr.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host).strip("[]")  # noqa: S104 - compared with
        try:
            async with asyncio.timeout(RESPONSE_SECONDS):
                try:
                    status = await health(host, int(port), handle.certificate)
                except AnotherCertificateError:  # perhaps a newer one, since it said that it was ready
                    found = await self.status()
                    status = await health(host, int(port), found[0].certificate) if found else b"it has ended"
        except (OSError, TimeoutError) as error:
            status = str(error).encode()
        if not status.startswith((b"HTTP/1.1 200", b"HTTP/1.1 403")):  # 403: the policy shuts this machine out
            await self.stop(now=True)
            answer = status.decode("latin-1").strip()
            raise did_not_start(f"a request to {handle.listen_addr} did not succeed: {answer}")

    # --- asking ------------------------------------------------------------------------------------------------

    async def _change(self, op: str) -> Handle:
        found = await self._settled()
        trouble = await self._trouble(found)
        if trouble is not None:
            raise trouble
        try:
            return _handle(await control.ask(self._socket, Request(op), CHANGE_SECONDS))
        except TimeoutError:
            message = (
                f"the proxy has not finished its {op} within {CHANGE_SECONDS:g} s; `flm proxy status` says how it is"
            )
            raise CommandError(CommandCode.IO_ERROR, message) from None

    async def _trouble(self, found: Instance) -> CommandError | None:
        """Why the running proxy cannot be asked anything; None if it can, or ended meanwhile."""
        try:
            await control.ask(self._socket, Request("status"), RESPONSE_SECONDS)
        except TimeoutError:
            return _hung(found)
        except CommandError:  # it says no, which is an answer, or nobody is there
            if await asyncio.to_thread(self._is_cut_off, found):
                return _cut_off(found)
        return None

    def _is_cut_off(self, found: Instance) -> bool:
        """Whether its control socket was deleted under a running proxy; one that ends goes on to end its instance."""
        if self._socket.exists():
            return False
        now = instance.running(self._folder.run)
        return now is not None and now.id == found.id

    async def _settled(self) -> Instance:
        """The running proxy; one that is just starting is waited for. Raises PROXY_NOT_RUNNING, IO_ERROR."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while await asyncio.to_thread(instance.is_locked, self._folder.run):
                    found = await asyncio.to_thread(instance.running, self._folder.run)
                    if found is not None:
                        return found
                    await asyncio.sleep(POLL_SECONDS)
        await asyncio.to_thread(instance.refuse_unseen, self._folder.run)
        raise CommandError(
            CommandCode.PROXY_NOT_RUNNING,
            f"no proxy runs in {self._folder.root}; start one with `flm proxy start`, or set FLM_HOME to its folder",
        )

    async def _wait_until_gone(self, found: Instance) -> None:
        """Until the lock is free, or another's, and no worker is left."""
        run = self._folder.run

        def gone() -> bool:
            now = instance.read(run)
            another = now is not None and now.id != found.id
            return another or not (instance.is_locked(run) or orphans(run))

        if not await within(GONE_SECONDS, gone):
            raise CommandError(
                CommandCode.IO_ERROR,
                f"the proxy (pid {found.pid}) said that it stopped, and lives; end it with kill -9",
            )


def _keep_quiet(_step: str, _detail: str) -> None:
    """Nobody asked."""


def _hung(found: Instance) -> CommandError:
    return CommandError(
        CommandCode.IO_ERROR,
        f"the proxy (pid {found.pid}) runs but has not answered for {RESPONSE_SECONDS:g} s; "
        "`flm proxy stop` ends it by force",
    )


def _cut_off(found: Instance) -> CommandError:
    return CommandError(
        CommandCode.IO_ERROR,
        f"the proxy (pid {found.pid}) runs but cannot be asked: its run/control.sock was deleted; "
        "`flm proxy stop` ends it by force, then start it anew",
    )


def _handle(data: Any) -> Handle:
    return msgspec.convert(data, Handle)


def in_clear(mode: str, listen_addr: str) -> bool:
    """Whether what comes from other machines can be read on its way."""
    return mode == "local-http" and not listen_addr.startswith(("127.", "[::1]:", "[::ffff:127."))
