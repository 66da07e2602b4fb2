"""Log pipes and the log file: lines whole, in bounds, and never in anybody's way."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import threading
from pathlib import Path

import pytest

from flm.runtime.logfile import LogDrain, RotatedFile
from flm.runtime.loglines import GATHER_BYTES, LONGEST_LINE, Batch, LogLines, install, render, timestamp


class Sink:
    """Keeps what it is given; can be told to fail, or to wait."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.failing = False
        self.written = threading.Event()

    def write(self, lines: bytes) -> None:
        if self.failing:
            raise OSError(errno.ENOSPC, "no space left")
        self.lines += lines.splitlines()
        self.written.set()


def pipe_to(drain: LogDrain) -> int:
    reading, writing = os.pipe()
    drain.add(reading)
    return writing


def test_lines_of_several_pipes_arrive_whole() -> None:
    sink = Sink()
    drain = LogDrain(sink)
    drain.start()
    pipes = [pipe_to(drain) for _ in range(3)]
    for index in range(200):
        for number, each in enumerate(pipes):
            os.write(each, b'{"pipe":%d,"line":%d}\n' % (number, index))
    for each in pipes:
        os.close(each)
    drain.stop(5)
    parsed = [json.loads(line) for line in sink.lines]
    for number in range(3):
        assert [line["line"] for line in parsed if line["pipe"] == number] == list(range(200))


def test_a_line_in_pieces_and_a_last_one_without_end() -> None:
    sink = Sink()
    drain = LogDrain(sink)
    drain.start()
    writing = pipe_to(drain)
    os.write(writing, b'{"a":')
    os.write(writing, b'1}\n{"b":2}')
    os.close(writing)
    drain.stop(5)
    assert sink.lines == [b'{"a":1}', b'{"b":2}']


def test_words_that_are_no_json_are_wrapped() -> None:
    sink = Sink()
    drain = LogDrain(sink)
    drain.start()
    writing = pipe_to(drain)
    os.write(writing, b"thread panicked at \xff\n")
    os.close(writing)
    drain.stop(5)
    (line,) = sink.lines
    assert json.loads(line)["message"].startswith("thread panicked at")


def test_an_endless_line_is_cut() -> None:
    sink = Sink()
    drain = LogDrain(sink)
    drain.start()
    writing = pipe_to(drain)
    for _ in range(40):
        os.write(writing, b"x" * 10_000)
    os.close(writing)
    drain.stop(5)
    assert sum(len(json.loads(line)["message"]) for line in sink.lines) == 400_000
    assert all(len(line) < 140_000 for line in sink.lines)


def test_a_full_disk_loses_lines_and_says_so_when_it_is_over() -> None:
    sink = Sink()
    sink.failing = True
    drain = LogDrain(sink)
    drain.start()
    writing = pipe_to(drain)
    os.write(writing, b'{"lost":1}\n{"lost":2}\n')
    os.close(writing)
    drain.stop(5)
    again = LogDrain(sink)
    again._lost = drain._lost
    assert drain._lost == 2
    sink.failing = False
    again.start()
    writing = pipe_to(again)
    os.write(writing, b'{"kept":1}\n')
    os.close(writing)
    again.stop(5)
    assert json.loads(sink.lines[0])["message"].startswith("2 log lines were lost")
    assert sink.lines[1] == b'{"kept":1}'


def test_pipes_stay_open_over_a_stop() -> None:
    """What a restart needs: lines written between one drain and the next are not lost."""
    sink = Sink()
    drain = LogDrain(sink)
    drain.start()
    writing = pipe_to(drain)
    os.write(writing, b'{"n":1}\n')
    drain.stop(5)
    (reading,) = drain.open_descriptors()
    os.write(writing, b'{"n":2}\n')
    successor = LogDrain(sink)
    successor.add(reading)
    successor.start()
    os.close(writing)
    successor.stop(5)
    assert sink.lines == [b'{"n":1}', b'{"n":2}']


def test_a_file_is_rotated_and_only_so_many_are_kept(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "flm.log", 100, 2)
    for number in range(10):
        file.write(b"%09d " % number * 4 + b"\n")
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flm.log", "flm.log.1", "flm.log.2"]
    newest_first = b"".join((tmp_path / name).read_bytes() for name in ("flm.log.2", "flm.log.1", "flm.log"))
    assert newest_first.split(b"\n")[-2].startswith(b"000000009")
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_nothing_is_kept_when_nothing_is_to_be_kept(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "flm.log", 50, 0)
    for number in range(10):
        file.write(b"%029d\n" % number)
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["flm.log"]


def test_half_a_line_on_a_full_disk_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RotatedFile(tmp_path / "flm.log", 1000, 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
    with pytest.raises(OSError, match="not written"):
        file.write(b'{"lost":1}\n')
    monkeypatch.undo()
    file.write(b'{"kept":1}\n')
    file.close()
    assert (tmp_path / "flm.log").read_bytes().splitlines()[-1] == b'{"kept":1}'


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "flm.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        RotatedFile(tmp_path / "flm.log", 100, 1).write(b"x\n")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_pipe_drops_lines_and_never_blocks_or_mixes_them() -> None:
    reading, writing = os.pipe()
    dropped: list[int] = []
    lines = LogLines(writing, dropped.append)
    for number in range(2000):
        lines.write(b'{"line":%d,"pad":"%s"}' % (number, b"x" * 200))
    assert dropped
    got = os.read(reading, 1 << 20)
    lines.write(b'{"line":-1}')
    got += os.read(reading, 1 << 20)
    parsed = [json.loads(line) for line in got.splitlines()]
    assert parsed[-1]["line"] == -1
    assert len(parsed) + sum(dropped) == 2001
    os.close(reading)
    lines.write(b"nobody reads")
    os.close(writing)


@pytest.mark.parametrize("width", [1, 50, 1000, 5000])
def test_of_many_lines_at_once_each_arrives_whole_or_is_counted(width: int) -> None:
    reading, writing = os.pipe()
    dropped: list[int] = []
    lines = LogLines(writing, dropped.append)
    batch = [b'{"line":%d,"pad":"%s"}' % (number, b"x" * width) for number in range(40)]
    sent, got = 0, b""
    while not dropped:
        lines.write_all(batch)
        sent += len(batch)
    got += os.read(reading, 1 << 20)
    lines.write(b'{"line":-1}')
    got += os.read(reading, 1 << 20)
    parsed = [json.loads(line) for line in got.splitlines()]
    assert parsed[-1]["line"] == -1
    assert len(parsed) + sum(dropped) == sent + 1
    os.close(reading)
    os.close(writing)


def test_a_batch_is_written_in_its_time_or_when_it_is_full() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    async def gather() -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        batch = Batch(LogLines(writing, lambda _: None))
        batch.write(b"one")
        batch.write(b"two")
        with pytest.raises(BlockingIOError):
            os.read(reading, 100)
        loop.add_reader(reading, arrived.set)
        await arrived.wait()
        loop.remove_reader(reading)
        assert os.read(reading, 100) == b"one\ntwo\n"
        for _ in range(4):
            batch.write(b"x" * (GATHER_BYTES // 4))
        assert len(os.read(reading, 1 << 20)) == GATHER_BYTES + 4
        batch.write(b"last")
        batch.flush()
        assert os.read(reading, 100) == b"last\n"

    asyncio.run(gather())
    os.close(reading)
    os.close(writing)


def test_a_long_line_is_cut() -> None:
    reading, writing = os.pipe()
    LogLines(writing, lambda _: None).write(b"x" * (LONGEST_LINE + 1))
    assert len(os.read(reading, 1 << 20)) == LONGEST_LINE + 1
    os.close(reading)
    os.close(writing)


def test_records_are_json_lines() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.LogRecord(
            "flm.x", logging.ERROR, "f.py", 1, "what %s", ("happened",), (ValueError, error, None)
        )
    line = json.loads(render(record, "worker 0"))
    assert (line["level"], line["process"], line["logger"], line["message"]) == (
        "error",
        "worker 0",
        "flm.x",
        "what happened",
    )
    assert re.fullmatch(r"ValueError\n  .*test_log\.py:\d+ in test_records_are_json_lines", line["error"])
    assert timestamp(0.5) == "1970-01-01T00:00:00.500Z"


def test_install_takes_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    reading, writing = os.pipe()
    try:
        install(LogLines(writing, lambda _: None), "supervisor", "warning")
        logging.getLogger("flm.y").info("quiet")
        logging.getLogger("flm.y").warning("loud")
    finally:
        root.handlers[:], root.level = before
        logging.captureWarnings(False)
    assert [json.loads(line)["message"] for line in os.read(reading, 1 << 16).splitlines()] == ["loud"]
    os.close(reading)
    os.close(writing)
