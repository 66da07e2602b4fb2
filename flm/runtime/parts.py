"""What a running proxy consists of: its databases, log, sockets, shared memory and workers, and how they hang together.

They come to be in one of two ways: `make`, at a start, or `take_over`, what an earlier image of this process passed on
with `pass_on`. Each part is there from its place in that order on, and `complete` when all of them are.

Nothing in here reacts to anybody or runs by itself: that is the supervisor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from functools import partial
from pathlib import Path

import msgspec

from flm.config import Settings
from flm.disk.private import secure_folder
from flm.errors import CommandError
from flm.runtime import control, instance, keepers
from flm.runtime.audit import AuditTrail
from flm.runtime.boot import Served, SupervisorBoot, SupervisorState
from flm.runtime.front import Front, Swap, served_by
from flm.runtime.generations import Generations
from flm.runtime.given import Opener
from flm.runtime.handle import Handle
from flm.runtime.journal import Journal, open_journal, prepare_folder
from flm.runtime.lastuse import LastUses
from flm.runtime.logfile import Terminal
from flm.runtime.loglines import timestamp
from flm.runtime.memory import Memory, wait_for_orphans
from flm.runtime.publish import Publisher
from flm.runtime.status import describe
from flm.runtime.upkeep import Upkeep
from flm.store.folder import Folder

log = logging.getLogger("flm.supervisor")


class Parts:
    """The parts of one proxy. `former`: what an earlier image of this process left; `swap` gives workers another
    certificate."""

    memory: Memory
    upkeep: Upkeep
    trail: AuditTrail
    generations: Generations
    control_socket: socket.socket
    asked: Served  # the mode and address that the settings asked for
    address: tuple[str, int]  # what is served

    def __init__(self, boot: SupervisorBoot, former: SupervisorState | None, swap: Swap) -> None:
        self.boot = boot
        self.folder = Folder(Path(boot.root), Path(boot.config), Path(boot.security))
        self.id = former.instance_id if former else os.urandom(16).hex()
        self.publisher = Publisher(self.folder, boot.flags, self.id)
        self.last_uses = LastUses(self.folder)
        self.journal = Journal(Terminal())
        self.front = Front(partial(keepers.keeper_of, self.folder), swap, Opener(boot.given))
        self._began = former.began if former else time.monotonic()
        self._started_at = former.started_at if former else timestamp(time.time())

    @property
    def complete(self) -> bool:
        """Whether there is all that can have workers."""
        return hasattr(self, "generations")

    async def make(self) -> Settings:
        """All of it anew, but no worker yet, and nothing published; the settings. Raises CommandError, OSError; then
        what there is by then has to be closed."""
        for folder in (self.folder.root, self.folder.run):
            await asyncio.to_thread(secure_folder, folder)
        await self.publisher.open()
        settings = (await self.publisher.load_settings()).settings
        if path := self._log_path(settings):
            await asyncio.to_thread(prepare_folder, path.parent, self.folder.root)
        self.journal = open_journal(self._log_path(settings), settings)
        self.journal.begin(settings.log_level)
        if self.boot.daemon:
            os.dup2(self.journal.own[1], 2)  # what is not logged properly, such as a crash, is logged all the same
        await asyncio.to_thread(wait_for_orphans, self.folder.run)
        self.asked = Served.by(settings)
        listening = self.front.open(settings)
        self.memory = Memory.create(self.folder.run, await self.publisher.key_count())
        self._hang_together(listening, os.pipe())
        return settings

    def listen_for_commands(self) -> None:
        """Open the control socket. Raises OSError."""
        self.control_socket = control.listen(self.folder.run / "control.sock")

    async def take_over(self, state: SupervisorState) -> None:
        """What the former image of this process left; its workers are serving all the while. Opens no database."""
        adopted = Memory.adopt(state.shared_fd, state.keyring_fd, state.buckets_fd, state.rings_fd)
        published = adopted.published() if adopted else None
        settings = published.settings if published else state.served.settings()  # until the databases are open
        self.journal = open_journal(self._log_path(settings), settings)
        self.journal.adopt(state.own_log_fds, state.log_fds, settings.log_level)
        listening, plain = (
            [socket.socket(fileno=descriptor) for descriptor in descriptors]
            for descriptors in (state.listening_fds, state.plain_fds)
        )
        self.memory = adopted or Memory.create(self.folder.run, 0)
        if adopted is not None:
            self.publisher.adopt(adopted.keyring, state.chat_keys)
        if published is not None:
            self.publisher.adopt_snapshot(published)
        self._hang_together(listening, state.life_fds)
        self.generations.adopt(state.workers, state.generation, settings, state.tls)
        await self.front.adopt(settings, state.mode, state.tls, plain)
        self.generations.warm.adopt(state.warm)
        self.control_socket = socket.socket(fileno=state.control_fd)
        self.asked = state.served

    def _hang_together(self, listening: list[socket.socket], life: tuple[int, int]) -> None:
        self.address = listening[0].getsockname()[:2]
        self.upkeep = Upkeep(self.publisher, self.memory)
        generations = Generations(
            listening,
            self.memory,
            life,
            str(self.folder.pepper),
            self.journal.pipe,
            self.boot.worker_module,
            self.upkeep.engine_failed,
            self.last_uses.note,
        )
        self.publisher.on_revocation = generations.end_revoked
        self.trail = AuditTrail(self.folder, self.memory.rings, self.publisher.settings, generations.crew.cells)
        self.generations = generations

    def listen_instead(self, listening: list[socket.socket]) -> None:
        """Serve at these sockets, before there is any worker."""
        self.address = listening[0].getsockname()[:2]
        self.generations.listen_instead(listening)

    def pass_on(self, reply_fd: int) -> SupervisorState:
        """What `take_over` will need. `reply_fd`: the connection of whoever is to be answered then."""
        return SupervisorState(
            boot=msgspec.structs.replace(self.boot, given=()),
            instance_id=self.id,
            started_at=self._started_at,
            began=self._began,
            generation=self.generations.number,
            served=self.asked,
            mode=self.front.mode,
            tls=self.front.tls,
            listening_fds=[each.fileno() for each in self.generations.listening],
            plain_fds=self.front.plain_fds(),
            shared_fd=self.memory.shared_fd,
            keyring_fd=self.memory.keyring_fd,
            buckets_fd=self.memory.buckets_fd,
            rings_fd=self.memory.rings_fd,
            life_fds=self.generations.life,
            control_fd=self.control_socket.fileno(),
            log_fds=self.journal.others(),
            own_log_fds=self.journal.own,
            workers=[member.state() for member in self.generations.crew.members],
            warm=self.generations.warm.states(),
            reply_fd=reply_fd,
            chat_keys=self.publisher.chat_keys,
        )

    def describe(self, state: str) -> Handle:
        """What `flm proxy status` says of this proxy, which is in `state`."""
        resolved = self.publisher.resolved
        return describe(
            instance_id=self.id,
            state=state,
            started_at=self._started_at,
            began=self._began,
            address=self.address,
            asked=self.asked,
            front=self.front,
            resolved=resolved,
            generations=self.generations,
            engines=self.publisher.engines_in_force,
            last_error=self.publisher.last_error or self.front.error(),
            audit=self.trail.line(),
            log_file=self._log_path(resolved.settings),
        )

    def write_record(self) -> None:
        """Tell other processes of the proxy: they find it by this."""
        served = served_by(self.asked, self.front, self.address[0])
        instance.announce(self.folder.run, self.id, served, self.address[0], self._started_at)

    def keep_record(self) -> None:
        """Write it again if somebody removed or spoiled it: nobody finds the proxy without."""
        found = instance.read(self.folder.run)
        if found is not None and (found.id, found.pid) == (self.id, os.getpid()):
            return
        with contextlib.suppress(CommandError, OSError):  # a full disk: at the next look
            self.write_record()
            log.warning("the record of the proxy in %s was removed or changed, and is written again", self.folder.run)

    def _log_path(self, settings: Settings) -> Path | None:
        """None: the terminal."""
        return self.folder.root / settings.log_file if self.boot.daemon else None
