"""What `make run` says at the end, and that it is true: the endpoint answers, the key works, the proxy stops."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import Flm
from tests.support.demo import demo_engine
from tests.support.ports import free_port


def quickstart() -> list[str]:
    command = [sys.executable, "-m", "flm.cli.quickstart"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def lines(said: list[str]) -> dict[str, str]:
    return {name: rest.strip() for name, rest in (line.split("  ", 1) for line in said[-4:])}


def test_first_and_second_run(flm: Flm, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_PROXY_PORT", str(free_port()))
    try:
        with demo_engine("openai") as engine:
            flm("engines", "add", "--id", "mine", "--kind", "openai", "--url", engine.url)
            first = quickstart()
            second = quickstart()
            for said in (first, second):
                told = lines(said)
                assert list(told) == ["endpoint", "key", "try", "stop"]
                assert any("Say hello" in line and "heard" in line for line in said), "a streamed answer was shown"
                assert told["key"].startswith("flm_")
                assert told["key"] in told["try"]
                status, body = carry_out(told["try"])
                assert status == 200
                assert body.endswith(b"data: [DONE]\n\n")
            assert lines(second)["endpoint"] == lines(first)["endpoint"]
            assert lines(second)["key"] != lines(first)["key"], "a key is shown once"
    finally:
        assert flm("proxy", "stop", "--now").code == 0


def carry_out(curl: str) -> tuple[int, bytes]:
    """What the `curl` line asks for, as curl would."""
    words = shlex.split(curl)
    assert words[:2] == ["curl", "-N"]
    url = urlsplit(words[2])
    headers = dict(word.split(": ", 1) for option, word in pairwise(words) if option == "-H")
    body = words[words.index("-d") + 1]
    assert json.loads(body)["stream"] is True
    connection = HTTPConnection(url.hostname or "", url.port, timeout=60)
    try:
        connection.request("POST", url.path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_what_goes_wrong_is_said_in_plain_words(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_PROXY_PORT", "x")
    done = subprocess.run(
        [sys.executable, "-m", "flm.cli.quickstart"], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "FLM_PROXY_PORT" in done.stderr
    assert "Traceback" not in done.stderr
