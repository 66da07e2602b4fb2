"""`flm security audit-logs` as JSON, as text, and followed."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest

from flm.store import audit, audit_file
from flm.store.folder import locate
from tests.cli.conftest import Flm, process

FIELDS = [
    "timestamp", "request_id", "client_ip", "api_key_id", "method", "endpoint", "engine_id", "model", "status",
    "latency_ms", "ttft_ms", "bytes_in", "bytes_out", "error_type",
]  # fmt: skip


def store(home: Path, *numbers: int, model: str = "m") -> None:
    async def add() -> None:
        async with await audit_file.open_for_writing(locate({"FLM_HOME": str(home)})) as database:
            now = int(time.time() * 1000)
            rows = [
                (n, now, f"r{n}", "::1", None, "GET", "/v1/models", "e", model, 200 + n, 1.5, None, 0, 9, None)
                for n in numbers
            ]
            await audit.add(database, rows)

    asyncio.run(add())


def test_nothing_yet(flm: Flm, home: Path) -> None:
    assert flm("security", "audit-logs").data == []
    assert flm("security", "audit-logs", "--format", "text").out == "(none)\n"
    assert not (home / "audit.db").exists()


def test_rows_as_json_and_as_a_table(flm: Flm, home: Path) -> None:
    store(home, *range(120))
    rows = flm("security", "audit-logs").data
    assert [row["request_id"] for row in rows] == [f"r{n}" for n in range(20, 120)]
    assert list(rows[0]) == FIELDS
    assert [row["status"] for row in flm("security", "audit-logs", "--limit", "2").data] == [318, 319]
    text = flm("security", "audit-logs", "--status", "205", "--since", "1h", "--format", "text").out.splitlines()
    assert text[0].split()[:2] == ["TIMESTAMP", "STATUS"]
    assert len(text) == 2
    assert "/v1/models" in text[1]
    chosen = ("--engine", "e", "--model", "m*", "--key", "k", "--until", "1s", "--errors")
    assert flm("security", "audit-logs", *chosen).data == []


@pytest.mark.parametrize(
    "wrong", [("--since", "x"), ("--status", "9"), ("--limit", "0"), ("--limit", "x"), ("--follow", "--until", "1h")]
)
def test_what_is_refused(flm: Flm, wrong: tuple[str, ...]) -> None:
    said = flm("security", "audit-logs", *wrong)
    assert (said.code, said.error[0]) == (1, "USAGE")


def test_control_characters_of_a_caller_do_not_steer_the_terminal(flm: Flm, home: Path) -> None:
    name = "\x1b[2Jm\nn\x9b2J\u202e\U000e0001\x7fä"
    store(home, 1, model=name)
    text = flm("security", "audit-logs", "--format", "text").out
    assert text.replace("\n", "").isprintable()
    assert text.count("\n") == 2
    listed = flm("security", "audit-logs")
    assert listed.out.replace("\n", "").isprintable()
    assert [row["model"] for row in listed.data] == [name]
    child = process("security", "audit-logs", "--follow", "--limit", "1")
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode()
        assert line[:-1].isprintable()
        assert json.loads(line)["model"] == name
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("format_", ["json", "text"])
def test_following(home: Path, format_: str) -> None:
    store(home, 1, 2)
    child = process("security", "audit-logs", "--follow", "--limit", "1", "--format", format_)
    try:
        assert child.stdout is not None
        if format_ == "text":
            assert child.stdout.readline().split()[0] == b"TIMESTAMP"
        first = child.stdout.readline()
        store(home, 3)
        second = child.stdout.readline()
        if format_ == "json":
            assert [json.loads(line)["request_id"] for line in (first, second)] == ["r2", "r3"]
            assert list(json.loads(first)) == FIELDS
        else:
            assert [line.split()[-1] for line in (first, second)] == [b"r2", b"r3"]
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
    finally:
        child.kill()
        child.communicate()
