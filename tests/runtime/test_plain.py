"""The plain-HTTP listener on real sockets: bounded in connections, time, descriptors, and its share of the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from flm.runtime import plain
from flm.runtime.plain import PlainListener
from flm.tls.plain import Site
from tests.runtime.harness import run

TOKEN = "x" * 43
ANSWER = f"{TOKEN}.thumbprint"
CHALLENGE = f"GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
UNTIL = 20  # seconds that no test takes; a hang fails by it


class Clock:
    """Time stands until a test moves it. Each tick of a listener reads it, which `readings` waits for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._readings = 0
        self._awaited = 0
        self._reached = asyncio.Event()

    def __call__(self) -> float:
        self._readings += 1
        if self._readings >= self._awaited:
            self._reached.set()
        return self.now

    async def readings(self, count: int) -> None:
        self._awaited = self._readings + count
        self._reached.clear()
        await asyncio.wait_for(self._reached.wait(), UNTIL)


class Counting(socket.socket):
    """A listening socket that counts how often it was accepted on."""

    accepts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.accepts += 1
        return super().accept()


def listening(address: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> Counting:
    opened = Counting(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.bind((address, 0))
    opened.listen(4096)
    return opened


def waiting(on: socket.socket) -> int:
    """Connections that can be accepted at once: `tcpi_unacked` of a listening socket is that (Linux, tcp_diag). A
    client that is connected may still be on its way there."""
    return int(struct.unpack_from("=I", on.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)[0])


class Serving:
    """A listener with its socket and clock, and clients of it."""

    def __init__(self, on: Counting, listener: PlainListener, clock: Clock, site: Site) -> None:
        self.on = on
        self.listener = listener
        self.clock = clock
        self.site = site
        self._clients: list[socket.socket] = []

    async def client(self, host: str = "127.0.0.1") -> socket.socket:
        client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        client.setblocking(False)
        self._clients.append(client)
        await asyncio.get_running_loop().sock_connect(client, (host, self.on.getsockname()[1]))
        return client

    async def clients(self, count: int) -> list[socket.socket]:
        return [await self.client() for _ in range(count)]

    async def ask(self, request: bytes = CHALLENGE, host: str = "127.0.0.1") -> bytes:
        client = await self.client(host)
        await send(client, request)
        answer = await rest(client)
        client.close()
        return answer

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(UNTIL):
            while not true():
                await self.clock.readings(1)

    def leave(self) -> None:
        for client in self._clients:
            client.close()


@asynccontextmanager
async def serving(on: Counting | None = None, *, most: int = 256, started: bool = True) -> AsyncIterator[Serving]:
    on = on or listening()
    clock = Clock()
    site = Site(names=("flm.example.com",), https_port=443, tokens={TOKEN: ANSWER})
    listener = PlainListener([on], site, clock=clock, most=most)
    served = Serving(on, listener, clock, site)
    try:
        if started:
            listener.start()
        yield served
    finally:
        served.leave()
        await listener.close()
        assert listener.connections == 0
        on.close()


async def send(client: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(client, data), UNTIL)


async def rest(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(UNTIL):
        while more := await loop.sock_recv(client, 65_536):
            data += more
    return data


def answered(data: bytes) -> bool:
    return data.startswith(b"HTTP/1.1 200 ") and data.endswith(b"\r\n\r\n" + ANSWER.encode())


def test_a_challenge_is_answered_and_the_rest_redirected() -> None:
    async def main() -> None:
        async with serving() as served:
            assert answered(await served.ask())
            redirected = await served.ask(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"\r\nlocation: https://flm.example.com/v1/models\r\n" in redirected
            await served.until(lambda: served.listener.connections == 0)

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_clients_of_both_families_on_one_socket(host: str) -> None:
    async def main() -> None:
        async with serving(listening("::", socket.AF_INET6)) as served:
            assert answered(await served.ask(host=host))

    run(main)


def test_each_of_several_sockets_is_served() -> None:
    async def main() -> None:
        both = [listening(), listening()]
        listener = PlainListener(both, Site(("a",), 443, {TOKEN: ANSWER}))
        listener.start()
        for on in both:
            reader, writer = await asyncio.open_connection(*on.getsockname())
            writer.write(CHALLENGE)
            assert answered(await asyncio.wait_for(reader.read(), UNTIL))
            writer.close()
        await listener.close()
        for on in both:
            on.close()

    run(main)


def test_what_comes_one_byte_after_the_other_is_answered() -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for index in range(len(CHALLENGE)):
                await send(client, CHALLENGE[index : index + 1])
                if index < 3:  # each by itself
                    await served.clock.readings(2)
            assert answered(await rest(client))

    run(main)


def test_bytes_one_by_one_cost_a_turn_each_tick_and_not_each(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    read, tick = plain._Talk.read, PlainListener._tick

    def read_counted(talk: plain._Talk, now: float) -> bool:
        happened.append("read")
        return read(talk, now)

    def tick_counted(listener: PlainListener) -> None:
        happened.append("tick")
        tick(listener)

    monkeypatch.setattr(plain._Talk, "read", read_counted)
    monkeypatch.setattr(PlainListener, "_tick", tick_counted)

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while happened.count("read") < 5:
                for _ in range(50):
                    await send(client, b"x")
                    await asyncio.sleep(0)  # the loop looks at its sockets
            assert happened.count("read") <= happened.count("tick") + 1

    run(main)


def test_a_client_that_sends_a_large_body_first_reads_the_answer_all_the_same() -> None:
    async def main() -> None:
        async with serving() as served:
            body = b"x" * (plain.MOST_DISCARDED - 100_000)
            head = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            client = await served.client()
            await send(client, head)
            await send(client, body)
            client.shutdown(socket.SHUT_WR)
            assert (await rest(client)).startswith(b"HTTP/1.1 308 ")

    run(main)


def test_while_a_body_comes_the_connection_that_has_its_answer_is_kept() -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            await send(client, b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
            assert (await rest(client)).startswith(b"HTTP/1.1 308 ")
            for _ in range(5):
                await send(client, b"x" * 60_000)
                await served.clock.readings(3)
                assert served.listener.connections == 1
            client.close()
            await served.until(lambda: served.listener.connections == 0)

    run(main)


def test_a_body_without_end_ends_with_the_connection() -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            with pytest.raises(ConnectionError):
                await send(client, CHALLENGE + b"x" * 100_000_000)  # far more than the kernel's buffers take
            assert served.listener.connections == 0

    run(main)


class TestTime:
    @pytest.mark.parametrize("said", [b"", b"GET", CHALLENGE[:-1]])
    def test_a_head_that_does_not_come_is_waited_for_five_seconds_and_no_longer(self, said: bytes) -> None:
        async def main() -> None:
            async with serving() as served:
                client = await served.client()
                await send(client, said)
                await served.clock.readings(3)
                served.clock.now += 4.9
                await served.clock.readings(3)
                assert served.listener.connections == 1
                served.clock.now += 0.1
                assert await rest(client) == b""
                assert served.listener.connections == 0

        run(main)

    def test_bytes_that_keep_coming_gain_no_time(self) -> None:
        async def main() -> None:
            async with serving() as served:
                client = await served.client()
                for byte in CHALLENGE[:10]:
                    await send(client, bytes([byte]))
                    await served.clock.readings(2)
                    served.clock.now += 0.49
                served.clock.now += 0.11
                assert await rest(client) == b""

        run(main)

    def test_a_client_that_does_not_read_is_left_in_the_end(self) -> None:
        async def main() -> None:
            async with serving() as served:
                served.site.tokens[TOKEN] = "y" * 20_000_000  # more than the kernel's buffers take
                client = await served.client()
                await send(client, CHALLENGE)
                await served.until(lambda: served.listener.connections == 1)
                await served.clock.readings(3)
                served.clock.now += plain.LINGER_SECONDS
                await served.until(lambda: served.listener.connections == 0)
                assert 0 < len(await rest(client)) < 20_000_000

        run(main)

    def test_one_that_reads_slowly_gets_it_whole(self) -> None:
        async def main() -> None:
            async with serving() as served:
                served.site.tokens[TOKEN] = "y" * 20_000_000
                assert (await served.ask()).endswith(b"y" * 20_000_000)

        run(main)

    def test_who_has_its_answer_and_stays_is_left_soon(self) -> None:
        async def main() -> None:
            async with serving() as served:
                client = await served.client()
                await send(client, CHALLENGE)
                assert answered(await rest(client))
                await served.clock.readings(3)
                assert served.listener.connections == 1
                served.clock.now += plain.LINGER_SECONDS
                await served.until(lambda: served.listener.connections == 0)

        run(main)


class TestPlaces:
    def test_there_are_so_many_and_the_oldest_makes_way_in_turn(self) -> None:
        async def main() -> None:
            async with serving(most=3) as served:
                idle = await served.clients(3)
                await served.until(lambda: served.listener.connections == 3)
                late = await served.client()
                await send(late, CHALLENGE)
                await served.clock.readings(5)
                with pytest.raises(BlockingIOError):
                    late.recv(1)
                served.clock.now += plain.TURN_SECONDS
                assert answered(await rest(late))
                assert await rest(idle[0]) == b""
                for client in idle[1:]:  # they had no need to
                    await send(client, CHALLENGE)
                    assert answered(await rest(client))

        run(main)

    def test_never_more_whoever_leaves_and_comes(self) -> None:
        async def main() -> None:
            async with serving(most=8) as served:
                for _ in range(5):
                    clients = await served.clients(20)
                    for client in clients[::3]:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        client.close()
                    await served.clock.readings(2)
                    assert served.listener.connections <= 8
                    served.clock.now += plain.TURN_SECONDS
                served.leave()
                await served.until(lambda: served.listener.connections == 0)
                assert answered(await served.ask())

        run(main)

    def test_a_tick_accepts_a_bounded_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        accepted: list[int] = []
        tick = PlainListener._tick

        def tick_counted(listener: PlainListener) -> None:
            accepted.append(listener.connections)
            tick(listener)

        monkeypatch.setattr(PlainListener, "_tick", tick_counted)

        async def main() -> None:
            async with serving(started=False) as served:
                await served.clients(200)
                async with asyncio.timeout(UNTIL):
                    while waiting(served.on) < 200:
                        await asyncio.sleep(0)
                served.listener.start()
                await served.until(lambda: served.listener.connections == 200)
                assert accepted == [plain.ACCEPTS_A_TICK * turn for turn in range(1, 4)]

        run(main)


class TestDescriptors:
    @pytest.fixture
    def limit(self) -> AsyncIterator[Callable[[int], None]]:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)

        def lower(soft: int) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))

        yield lower  # type: ignore[misc]
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def test_without_any_it_pauses_says_so_once_and_goes_on(
        self, limit: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with serving(started=False) as served:
                client = await served.client()
                await send(client, CHALLENGE)
                before = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                limit(free())
                served.listener.start()
                await served.until(lambda: served.on.accepts == 1)
                await served.clock.readings(5)
                assert (served.on.accepts, served.listener.connections) == (1, 0)
                served.clock.now += plain.SHORTAGE_SECONDS
                await served.until(lambda: served.on.accepts == 2)
                assert caplog.text.count("accepts no connection for now: Too many open files; raise the limit") == 1
                limit(before)
                served.clock.now += plain.SHORTAGE_SECONDS
                assert answered(await rest(client))

        with caplog.at_level(logging.WARNING):
            run(main)

    def test_the_last_ones_are_left_to_others(self, limit: Callable[[int], None]) -> None:
        async def main() -> None:
            async with serving(started=False) as served:
                clients = await served.clients(150)
                first = free()
                limit(first + 20 + plain.RESERVED_DESCRIPTORS)
                served.listener.start()
                await served.until(lambda: served.listener.connections == 20)
                await served.clock.readings(5)
                assert served.listener.connections == 20
                assert free() == first + 20  # and all above are free
                for client in clients:
                    client.close()
                await served.until(lambda: served.listener.connections == 0)

        run(main)


def free() -> int:
    """The lowest descriptor that is free."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


class TestClosing:
    def test_what_is_open_has_the_grace_and_who_comes_then_waits_for_the_next_listener(self) -> None:
        async def main() -> None:
            async with serving() as served:
                client = await served.client()
                await send(client, CHALLENGE[:-1])
                await served.until(lambda: served.listener.connections == 1)
                closing = asyncio.create_task(served.listener.close(grace=UNTIL))
                await asyncio.sleep(0)
                late = await served.client()
                await send(late, CHALLENGE)
                await served.clock.readings(3)
                assert served.on.accepts <= 2
                await send(client, CHALLENGE[-1:])
                assert answered(await rest(client))
                client.close()
                await asyncio.wait_for(closing, UNTIL)
                successor = PlainListener([served.on], served.site)
                successor.start()
                assert answered(await rest(late))
                await successor.close()

        run(main)

    def test_without_grace_all_is_cut(self) -> None:
        async def main() -> None:
            async with serving() as served:
                client = await served.client()
                await served.until(lambda: served.listener.connections == 1)
                await served.listener.close()
                assert await rest(client) == b""

        run(main)

    def test_when_the_grace_is_over_too(self) -> None:
        async def main() -> None:
            async with serving() as served:
                client = await served.client()
                await served.until(lambda: served.listener.connections == 1)
                await served.listener.close(grace=0.01)
                assert await rest(client) == b""

        run(main)


def test_a_tls_client_is_told_at_once() -> None:
    async def main() -> None:
        async with serving() as served:
            port = served.on.getsockname()[1]
            with pytest.raises(ssl.SSLError):
                await asyncio.wait_for(
                    asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context()), UNTIL
                )

    run(main)
