"""Sockets that systemd gives: what is taken, what is refused, and a proxy that lives on them. Whole process trees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flm.config import Settings
from flm.errors import CommandCode, CommandError
from flm.runtime import given, sockets
from flm.runtime.boot import Given
from flm.runtime.given import Opener, settings_of, take_given
from tests.runtime.harness import ROOT, Load, Running, alive, get, only_ok, prepare, run, until

LAUNCHER = str(Path(__file__).with_name("launcher.py"))
Bind = Callable[..., socket.socket]


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Makes listening sockets as a socket unit does; `port` 0: the kernel's choice."""
    with contextlib.ExitStack() as opened:

        def make(host: str = "127.0.0.1", port: int = 0, *, reuse: bool = False, both: bool = False) -> socket.socket:
            one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            opened.enter_context(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if one.family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            one.bind((host, port))
            one.listen()
            return one

        yield make


def named(one: socket.socket, name: str = "") -> Given:
    return Given(one.fileno(), name)


def port_of(one: socket.socket) -> int:
    return int(one.getsockname()[1])


# --- the protocol


def words(**changed: str) -> dict[str, str]:
    return {"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "HOME": "/x"} | changed


def test_what_is_given_is_taken_once(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bind()
    one.set_inheritable(True)
    monkeypatch.setattr(given, "FIRST", one.fileno())
    environment = words(LISTEN_PIDFDID="1")
    assert take_given(environment, 7) == (Given(one.fileno(), "http"),)
    assert environment == {"HOME": "/x"}
    assert not one.get_inheritable()
    assert take_given(environment, 7) == ()


def test_without_names_there_are_none(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bind()
    monkeypatch.setattr(given, "FIRST", one.fileno())
    environment = words()
    del environment["LISTEN_FDNAMES"]
    assert take_given(environment, 7) == (Given(one.fileno(), ""),)


def test_another_processs_sockets_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    environment = words()
    with caplog.at_level(logging.WARNING):
        assert take_given(environment, 8) == ()
    assert "for the process 7, and this is 8" in caplog.text
    assert environment == {"HOME": "/x"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"LISTEN_FDS": "x"}, "no number"),
        ({"LISTEN_FDS": "-1"}, "no number"),
        ({"LISTEN_FDS": "65"}, "no number from 0 to 64"),
        ({"LISTEN_FDS": "2"}, "1 names for 2 sockets"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, str], why: str) -> None:
    with pytest.raises(CommandError, match=why) as refused:
        take_given(words(**changed), 7)
    assert refused.value.code is CommandCode.PROXY_INVALID_CONFIG


def datagrams() -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    return one


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (datagrams, "no socket of TCP"),
        (lambda: socket.socket(socket.AF_UNIX), "no socket of TCP"),
        (socket.socket, "does not listen; the socket unit needs Accept=no"),
    ],
)
def test_nothing_else_is_listened_on(
    make: Callable[[], socket.socket], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make() as one:
        monkeypatch.setattr(given, "FIRST", one.fileno())
        with pytest.raises(CommandError, match=why):
            take_given(words(), 7)


def test_a_file_and_nothing_at_all_are_no_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "file", "wb") as file:
        number = file.fileno()
        monkeypatch.setattr(given, "FIRST", number)
        with pytest.raises(CommandError, match=rf"descriptor {number} \(http\) is no socket"):
            take_given(words(), 7)
    with pytest.raises(CommandError, match=rf"descriptor {number} \(http\) is no socket"):
        take_given(words(), 7)


# --- which socket is for what


def test_names_say_ports_and_address(bind: Bind) -> None:
    http, https, other = bind(), bind(), bind()
    assert settings_of([named(other, "flm.socket")]) == {}
    assert settings_of([named(http, "http"), named(https, "https"), named(other)]) == {
        "proxy.port": port_of(http),
        "proxy.https_port": port_of(https),
        "proxy.bind": "127.0.0.1",
    }


@pytest.mark.parametrize(
    ("hosts", "address"),
    [
        ([("0.0.0.0", False)], "0.0.0.0"),
        ([("::", True)], "*"),
        ([("::", False)], "::"),
        ([("0.0.0.0", False), ("::", False)], "*"),
        ([("::1", False)], "::1"),
    ],
)
def test_the_address_is_the_one_that_is_bound(bind: Bind, hosts: list[tuple[str, bool]], address: str) -> None:
    port = 0
    opened = []
    for host, both in hosts:
        opened.append(bind(host, port, both=both))
        port = port_of(opened[0])
    assert settings_of([named(each, "http") for each in opened])["proxy.bind"] == address


def test_names_must_not_contradict_each_other(bind: Bind) -> None:
    with pytest.raises(CommandError, match="two ports are called http"):
        settings_of([named(bind(), "http"), named(bind(), "http")])
    with pytest.raises(CommandError, match=r"bound to 0\.0\.0\.0 and 127\.0\.0\.1"):
        settings_of([named(bind("0.0.0.0"), "http"), named(bind(), "https")])


@pytest.mark.parametrize(
    ("host", "both", "wanted", "fits"),
    [
        ("127.0.0.1", False, "127.0.0.1", True),
        ("127.0.0.1", False, "127.0.0.2", False),
        ("127.0.0.1", False, "*", False),
        ("0.0.0.0", False, "*", True),
        ("0.0.0.0", False, "127.0.0.1", False),
        ("::", False, "*", True),
        ("::", True, "*", True),
        ("::", True, "::", False),  # it would be open to IPv4, which nobody asked for
        ("::1", False, "0:0:0:0:0:0:0:1", True),
    ],
)
def test_what_fits_is_used_and_what_does_not_is_refused(
    bind: Bind, host: str, both: bool, wanted: str, fits: bool
) -> None:
    one = bind(host, both=both)
    settings = Settings(proxy_bind=wanted, proxy_port=port_of(one))
    opener = Opener([named(one)])
    if not fits:
        with pytest.raises(CommandError, match=rf":{port_of(one)} \(without a name\): the settings ask for http at"):
            opener.refuse_misfits(settings)
        return
    opener.refuse_misfits(settings)
    (taken,) = opener.open_for(settings)
    with taken:
        assert os.path.sameopenfile(taken.fileno(), one.fileno())
        assert taken.fileno() != one.fileno()
        assert not os.get_inheritable(taken.fileno())
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 75_000  # a little later than the worker


def test_a_refusal_says_what_was_given_and_what_was_wanted(bind: Bind) -> None:
    one = bind()
    with pytest.raises(CommandError) as refused:
        Opener([named(one, "flm.socket")]).refuse_misfits(Settings(proxy_mode="https-acme", proxy_https_port=443))
    assert f"127.0.0.1:{port_of(one)} (flm.socket)" in refused.value.message
    assert "http at 127.0.0.1:3560 and https at 127.0.0.1:443 (mode https-acme)" in refused.value.message
    assert "ListenStream=" in refused.value.message


def test_another_port_is_opened_as_always(bind: Bind) -> None:
    for one in Opener([named(bind())]).open("127.0.0.1", 0, 2, 60):
        with one:
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


@pytest.mark.parametrize(("workers", "lines", "warned"), [(1, 1, False), (2, 1, True), (2, 2, False), (2, 3, False)])
def test_workers_that_share_a_socket_are_told_of(
    bind: Bind, workers: int, lines: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = bind(reuse=True)
    rest = [bind(port=port_of(first), reuse=True) for _ in range(lines - 1)]
    for one in Opener([named(each) for each in (first, *rest)]).open("127.0.0.1", port_of(first), workers, 60):
        one.close()
    assert ("ReusePort=yes" in caplog.text) == warned


@pytest.mark.parametrize(
    ("fallback", "expose", "host", "refused"),
    [
        ("local-http", False, "0.0.0.0", True),
        ("local-http", True, "0.0.0.0", False),
        ("dev-selfsigned", False, "0.0.0.0", False),
        ("local-http", False, "127.0.0.1", False),
    ],
)
def test_a_fallback_that_cannot_be_had_is_refused_at_once(
    bind: Bind, fallback: str, expose: bool, host: str, refused: bool
) -> None:
    one = bind(host)
    settings = Settings(
        proxy_mode="https-acme",
        proxy_bind=host,
        proxy_port=port_of(one),
        proxy_https_port=1,
        proxy_fallback=fallback,  # type: ignore[arg-type]  # one of the choices
        proxy_expose_fallback=expose,
    )
    with pytest.raises(CommandError, match="expose_fallback") if refused else contextlib.nullcontext():
        Opener([named(one)]).refuse_misfits(settings)


def test_a_socket_that_was_given_stays_alone_and_one_of_ours_is_joined(bind: Bind) -> None:
    alone = [bind()]
    assert sockets.enough(alone, 3, 60) is alone
    shared = bind(reuse=True)
    joined = sockets.enough([shared], 3, 60)
    assert [port_of(each) for each in joined] == [port_of(shared)] * 3
    for each in joined[1:]:
        each.close()


# --- a proxy that lives on them


async def start(proxy: Running, *opened: Given) -> None:
    flags = {key: value for key, value in proxy.flags.items() if key not in settings_of(opened)}
    await proxy.service.start(flags, first_key=False, given=opened)


@pytest.mark.parametrize("lines", [1, 2])
def test_nothing_is_dropped_over_reload_and_restart(tmp_path: Path, bind: Bind, lines: int) -> None:
    """Two workers on one socket, and on one each; then one more worker than there are sockets."""
    first = bind(reuse=lines > 1)
    opened = [first, *(bind(port=port_of(first), reuse=True) for _ in range(lines - 1))]
    proxy = prepare(tmp_path, proxy__workers=2)

    async def main() -> None:
        await start(proxy, *(named(each, "http") for each in opened))
        try:
            before = await proxy.handle()
            assert (before.port, before.workers) == (port_of(first), 2)
            assert before.listen_addr == f"127.0.0.1:{port_of(first)}"
            load = Load(before.port)
            load.add(fresh=3, reused=3, streams=3, events=30)
            for op in ("reload", "restart", "restart", "reload"):
                load.seen.clear()
                await until(lambda: all(load.seen[f"{kind} ok"] for kind in ("fresh", "reused", "stream")), 30)
                after = await getattr(proxy.service, op)()
                assert only_ok(load.seen), load.seen
            seen = await load.finish()
            assert only_ok(seen), seen
            assert (after.pid, after.port, after.last_error) == (before.pid, before.port, None)
        finally:
            await proxy.service.stop(now=True)

    run(main)


def test_clients_wait_in_the_socket_until_flm_is_there_again(tmp_path: Path, bind: Bind) -> None:
    one = bind()
    proxy = prepare(tmp_path)

    async def main() -> None:
        for _ in range(2):
            waiting = asyncio.create_task(get(port_of(one), seconds=60))
            while not waiting.done() and not waits_for(one):
                await asyncio.sleep(0)
            await start(proxy, named(one, "http"))
            try:
                assert (await waiting).startswith(b"HTTP/1.1 200")
            finally:
                await proxy.service.stop()

    run(main)


def waits_for(one: socket.socket) -> bool:
    """Whether a connection waits in this socket's queue: `sk_ack_backlog`, which /proc/net/tcp shows as rx_queue."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port_of(one):
            return int(fields[4].partition(":")[2], 16) > 0
    return False


def test_both_ports_of_https(tmp_path: Path, bind: Bind) -> None:
    http, https = bind(), bind()
    proxy = prepare(tmp_path, proxy__mode="dev-selfsigned")

    async def main() -> None:
        await start(proxy, named(https, "https"), named(http, "http"))
        try:
            for _ in range(2):
                handle = await proxy.handle()
                assert (handle.port, handle.https_port) == (port_of(http), port_of(https))
                assert (await get(port_of(https), tls=proxy.trusting())).startswith(b"HTTP/1.1 200")
                assert f"https://localhost:{port_of(https)}/".encode() in await get(port_of(http), "/")
                await proxy.service.restart()
        finally:
            await proxy.service.stop(now=True)

    run(main)


def launched(home: Path, names: str, opened: list[socket.socket], *arguments: str) -> subprocess.Popen[str]:
    """`flm proxy start` as systemd starts it."""
    numbers = ",".join(str(each.fileno()) for each in opened)
    return subprocess.Popen(
        [sys.executable, LAUNCHER, names, numbers, sys.executable, "-m", "flm", "proxy", "start", *arguments],
        env=os.environ | {"FLM_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[each.fileno() for each in opened],
    )


def given_words(pid: int) -> list[str]:
    return [word for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if word.startswith("LISTEN_")]


@pytest.mark.parametrize("options", [("--no-daemon",), ()])
def test_as_systemd_starts_it(tmp_path: Path, bind: Bind, options: tuple[str, ...]) -> None:
    one = bind()
    proxy = prepare(tmp_path)
    child = launched(proxy.folder.root, "flm.socket", [one], *options, "--port", str(port_of(one)), "--workers", "2")

    async def main() -> None:
        assert (await get(port_of(one), "/health", seconds=60)).startswith(b"HTTP/1.1 200")
        while (started := await proxy.handle()).state != "running":  # one of its workers may have answered
            await asyncio.sleep(0)
        restarted = await proxy.service.restart()
        assert restarted.pid == started.pid
        assert (restarted.pid == child.pid) == bool(options)
        assert (await get(port_of(one), "/health")).startswith(b"HTTP/1.1 200")
        assert [given_words(pid) for pid in (restarted.pid, *restarted.worker_pids)] == [[], [], []]
        await proxy.service.stop(now=True)
        assert not alive(restarted.pid)

    try:
        run(main)
        output, log = child.communicate(timeout=60)
        assert (child.returncode, json.loads(output)["data"]["port"]) == (0, port_of(one)), log
    finally:
        end(child, proxy)


def test_a_socket_without_a_use_ends_the_start(tmp_path: Path, bind: Bind) -> None:
    one = bind()
    proxy = prepare(tmp_path)
    child = launched(proxy.folder.root, "flm.socket", [one], "--no-daemon")
    try:
        output, log = child.communicate(timeout=60)
        error = json.loads(output)["error"]
        assert (child.returncode, error["code"]) == (1, "PROXY_INVALID_CONFIG"), log
        assert f"127.0.0.1:{port_of(one)} (flm.socket)" in error["message"]
    finally:
        end(child, proxy)


def end(child: subprocess.Popen[str], proxy: Running) -> None:
    """Nothing is left, also of a test that failed."""
    with contextlib.suppress(CommandError):
        asyncio.run(proxy.service.stop(now=True))
    if child.poll() is None:
        child.send_signal(signal.SIGKILL)
    child.communicate()
