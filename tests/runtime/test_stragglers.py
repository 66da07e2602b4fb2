"""Who reads too slowly, decided from what the kernel says; time is an argument."""

from __future__ import annotations

import os
import socket

from flm.runtime.listener import cut
from flm.runtime.stragglers import PLENTY_BYTES, STALL_SECONDS, Backlog, Stragglers, look

PEER = ("127.0.0.1", 40_000)
RATE = 64


LONG = 1e9  # a send timeout that nobody reaches


def judged(
    *samples: tuple[float, int, int], rate: int = RATE, send_timeout: float = LONG
) -> list[list[tuple[str, int]]]:
    """For each (time, waiting, acknowledged) of one peer: who is cut then."""
    stragglers = Stragglers(rate, send_timeout)
    return [stragglers.judge([Backlog(PEER, waiting, acknowledged)], now) for now, waiting, acknowledged in samples]


def test_a_byte_now_and_then_is_too_slow() -> None:
    assert judged((0, 99_999, 10), (15, 99_999, 20), (STALL_SECONDS, 99_999, 30)) == [[], [], [PEER]]


def test_the_rate_is_enough() -> None:
    enough = RATE * int(STALL_SECONDS)
    assert judged((0, 99_999, 0), (STALL_SECONDS, 99_999, enough)) == [[], []]
    assert judged((0, 99_999, 0), (STALL_SECONDS, 99_999, enough - 1)) == [[], [PEER]]


def test_who_has_caught_up_meanwhile_begins_anew() -> None:
    assert judged((0, 99_999, 0), (15, PLENTY_BYTES - 1, 5), (STALL_SECONDS, 99_999, 5), (45, 99_999, 6))[-1] == []


def test_little_waiting_is_no_stall() -> None:
    assert judged((0, PLENTY_BYTES - 1, 0), (60, PLENTY_BYTES - 1, 0)) == [[], []]


def test_another_connection_from_the_same_port_begins_anew() -> None:
    assert judged((0, 99_999, 1000), (STALL_SECONDS, 99_999, 3)) == [[], []]


def test_who_takes_nothing_for_the_send_timeout_is_cut_and_told_of_until_he_is_gone() -> None:
    samples = ((0, 1, 10), (4, 1, 10), (5, 1, 10), (6, 1, 10))
    assert judged(*samples, rate=0, send_timeout=5) == [[], [], [PEER], [PEER]]


def test_who_takes_a_byte_has_the_whole_send_timeout_again() -> None:
    assert judged((0, 9, 10), (4, 9, 11), (5, 9, 11), (8.9, 9, 11), (9, 9, 11), send_timeout=5)[2:] == [[], [], [PEER]]


def test_who_has_taken_all_of_it_may_take_his_time() -> None:
    assert judged((0, 9, 10), (4, 0, 19), (10, 9, 19), (14, 9, 19), send_timeout=5) == [[], [], [], []]


def test_who_is_too_slow_in_both_ways_is_told_of_once() -> None:
    assert judged((0, 99_999, 10), (STALL_SECONDS, 99_999, 10), send_timeout=STALL_SECONDS) == [[], [PEER]]


def test_who_is_gone_is_forgotten() -> None:
    stragglers = Stragglers(RATE, STALL_SECONDS)
    stragglers.judge([Backlog(PEER, 99_999, 0)], 0)
    stragglers.judge([], 10)
    assert stragglers.judge([Backlog(PEER, 99_999, 0)], STALL_SECONDS) == []


def test_what_the_kernel_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, address = listening.accept()
            with accepted:
                accepted.setblocking(False)
                sent = accepted.send(b"x" * 100)
                assert client.recv(1000, socket.MSG_WAITALL if sent > 1000 else 0)
                (seen,) = look(port)
                assert (seen.peer, seen.waiting) == (address, 0)
                assert 100 <= seen.acknowledged <= 101
                sent = 0
                while True:
                    try:
                        sent += accepted.send(b"x" * 100_000)
                    except BlockingIOError:
                        break
                (seen,) = look(port)
                assert PLENTY_BYTES < seen.waiting <= sent
    assert look(port) == []


def test_a_look_leaves_no_descriptor_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        reading, writing = os.pipe()  # no sockets: a look must let go of what it made of them
        try:
            before = sorted(os.listdir("/proc/self/fd"))
            for _ in range(3):
                look(port)
                assert not cut(("127.0.0.1", "1"))
            assert sorted(os.listdir("/proc/self/fd")) == before
        finally:
            os.close(reading)
            os.close(writing)
