"""What one FLM process hands to the next: a JSON document in an unlinked file, passed as a descriptor.

Nothing that a process needs to know stands in its arguments or environment, where others could read it; the only
argument is the number of the descriptor. The same form carries a supervisor's state over exec.

The words that a supervisor and its workers exchange meanwhile stand here too. Knows the shapes and how to pass them;
starts no process.
"""

from __future__ import annotations

import os
import socket
import tempfile
from typing import IO, Final, TypeVar

import msgspec

from flm.config import Mode, Settings, Value

T = TypeVar("T")
WORKER_MODULE: Final = "flm.runtime.worker"


class Served(msgspec.Struct, frozen=True):
    """What a proxy listens on: of `local-http` `port` alone, else `https_port`, and `port` for plain HTTP."""

    mode: Mode
    bind: str
    port: int
    https_port: int

    @classmethod
    def by(cls, settings: Settings) -> Served:
        """What `settings` ask for."""
        https_port = settings.proxy_https_port if settings.proxy_mode != "local-http" else 0
        return cls(settings.proxy_mode, settings.proxy_bind, settings.proxy_port, https_port)

    def settings(self) -> Settings:
        """The least that asks for this: all else is as it comes."""
        return Settings(
            proxy_mode=self.mode, proxy_bind=self.bind, proxy_port=self.port, proxy_https_port=self.https_port
        )

    def __str__(self) -> str:
        ports = f"ports {self.port} and {self.https_port}" if self.https_port else f"port {self.port}"
        return f"{self.mode} at {self.bind} {ports}"


class Tls(msgspec.Struct, frozen=True):
    """What a worker serves TLS with. `pem`: private key and chain, secret. `names`: the hosts it answers for beside
    addresses of its own. `hsts`: browsers are told to come by HTTPS only."""

    pem: bytes
    min_version: str
    names: tuple[str, ...]
    hsts: bool

    def __repr__(self) -> str:  # the default would print the key
        return f"Tls(names={self.names!r}, min_version={self.min_version!r}, hsts={self.hsts!r})"


class WorkerBoot(msgspec.Struct, frozen=True):
    """What a worker is started with; every `*_fd` is a descriptor it inherits.

    `listening_fds`: sockets to serve, usually one. `shared_fd`, `keyring_fd`, `buckets_fd`, `rings_fd`: mapped files.
    `cell`: its slot in the shared memory. `control_fd`: its end of the socket pair. `life_fd`: reads end of file when
    the supervisor is gone. `tls`: None serves plain HTTP.
    """

    listening_fds: list[int]
    shared_fd: int
    keyring_fd: int
    buckets_fd: int
    rings_fd: int
    control_fd: int
    life_fd: int
    log_fd: int
    cell: int
    slot: int
    generation: int
    pepper: str
    header_timeout: float
    connections: int
    log_level: str
    min_bytes_per_second: int
    send_timeout: float
    tls: Tls | None = None


class Order(msgspec.Struct, frozen=True):
    """What a supervisor tells its worker: `retire`, `stop`, `abort`, or `revoked` (keys have left the keyring: end
    their requests). `seconds`: how long running requests may take to finish.
    """

    op: str
    seconds: float = 0.0


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker tells its supervisor: `warm` (it waits for its document), `ready`, `failed`, `retired` (it accepts
    no more), `leaving` (it got SIGTERM and wants a successor), `engine-failed` (a request to `engine` failed by its
    fault), or `keys-used` (requests came with these keys, by their ids).
    """

    event: str
    message: str = ""
    engine: str = ""
    keys: tuple[str, ...] = ()


class Given(msgspec.Struct, frozen=True):
    """A descriptor that whoever started FLM has opened for it to listen on. `name`: what it is called; may be empty."""

    descriptor: int
    name: str


class SupervisorBoot(msgspec.Struct, frozen=True):
    """What a supervisor is started with. `flags`: settings given on the command line, which win over the database.

    `lock_fd`: the folder's lock, held. `report_fd`: where the outcome of the start is written; None in the foreground.
    `given`: to listen on; what is taken of it is among the supervisor's own sockets, so that exec passes none on.
    """

    root: str
    config: str
    security: str
    flags: dict[str, Value]
    lock_fd: int
    daemon: bool
    report_fd: int | None = None
    worker_module: str = WORKER_MODULE
    given: tuple[Given, ...] = ()


class WorkerState(msgspec.Struct, frozen=True):
    """A living worker, as its supervisor passes it over exec. `deadline`: monotonic seconds, of a draining one."""

    pid: int
    slot: int
    cell: int
    generation: int
    control_fd: int
    listening_fds: list[int]
    draining: bool
    deadline: float | None


class WarmState(msgspec.Struct, frozen=True):
    """A worker that has imported everything and waits for its document on its socket pair."""

    pid: int
    control_fd: int


class SupervisorState(msgspec.Struct, frozen=True):
    """Everything that a supervisor passes to itself over exec; times are RFC 3339. `began`: the start, in
    seconds of the monotonic clock, which goes on over exec. `life_fds`: read end, write end. `served`: what the
    settings asked for; `mode`: what is served, perhaps a fallback."""

    boot: SupervisorBoot
    instance_id: str
    started_at: str
    began: float
    generation: int
    served: Served
    mode: Mode
    tls: Tls | None
    listening_fds: list[int]
    plain_fds: list[int]
    shared_fd: int
    keyring_fd: int
    buckets_fd: int
    rings_fd: int
    life_fds: tuple[int, int]
    control_fd: int
    log_fds: list[int]
    own_log_fds: tuple[int, int]
    workers: list[WorkerState]
    warm: list[WarmState]
    reply_fd: int | None
    chat_keys: dict[str, float]


def in_memory(data: bytes) -> IO[bytes]:
    """A file without a name that holds `data`, at its beginning: in memory where the system has such, since documents
    hold private keys."""
    file: IO[bytes]
    file = open(os.memfd_create("flm"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.flush()
    file.seek(0)
    return file


def pack(document: msgspec.Struct) -> int:
    """The descriptor of an unlinked file that holds `document`; the caller passes it on and closes it."""
    with in_memory(msgspec.json.encode(document)) as file:
        return os.dup(file.fileno())


def unpack(descriptor: int, shape: type[T]) -> T:
    """Read what `pack` wrote, and close the descriptor. Raises msgspec.ValidationError for another shape."""
    with open(descriptor, "rb") as file:
        return msgspec.json.decode(file.read(), type=shape)


_LONGEST_BOOT: Final = 65_536
_MOST_DESCRIPTORS: Final = 250  # the kernel passes 253 at once


def hand_over(control: socket.socket, boot: WorkerBoot) -> None:
    """Send a worker that waits its document and its descriptors, all but the two it has. Raises OSError."""
    descriptors = [*boot.listening_fds, boot.shared_fd, boot.keyring_fd, boot.buckets_fd, boot.rings_fd, boot.life_fd]
    socket.send_fds(control, [msgspec.json.encode(boot) + b"\n"], descriptors)


def take_over(control: socket.socket, log_fd: int) -> WorkerBoot | None:
    """Wait for what `hand_over` sends; the document with this process's own descriptors. None at end of file."""
    document, descriptors = b"", list[int]()
    while not document.endswith(b"\n"):
        data, received, _, _ = socket.recv_fds(control, _LONGEST_BOOT, _MOST_DESCRIPTORS)
        if not data:
            return None
        document += data
        descriptors += received
    boot = msgspec.json.decode(document, type=WorkerBoot)
    *listening, shared, keyring, buckets, rings, life = descriptors
    return msgspec.structs.replace(
        boot,
        listening_fds=listening,
        shared_fd=shared,
        keyring_fd=keyring,
        buckets_fd=buckets,
        rings_fd=rings,
        life_fd=life,
        control_fd=control.detach(),
        log_fd=log_fd,
    )
