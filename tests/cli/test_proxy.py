"""`flm proxy …` as people run it: JSON, exit codes, what a terminal or a log gets. A real proxy, real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flm.cli.command import Noun
from flm.cli.proxy import _flags, for_people, register, warn_of_idle
from flm.runtime.handle import CertificateLine, Endpoints, Handle
from tests.runtime.harness import ROOT, alive
from tests.support.ports import free_port

Run = subprocess.CompletedProcess[str]


class Cli:
    """The command in one data folder."""

    def __init__(self, home: Path) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLM_")},
            "FLM_HOME": str(home),
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *arguments: str) -> Run:
        return subprocess.run(
            [sys.executable, "-m", "flm", "proxy", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def data(self, *arguments: str) -> Any:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["data"]

    def error(self, *arguments: str) -> tuple[int, str]:
        done = self.run(*arguments)
        return done.returncode, json.loads(done.stdout)["error"]["code"]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    command = Cli(tmp_path / "home")
    yield command
    command.run("stop", "--now")


def test_a_life(cli: Cli) -> None:
    port = str(free_port())
    assert cli.data("status") == []
    started = cli.data("start", "--port", port, "--workers", "2")
    assert started["key"].startswith("flm_")
    assert (started["port"], started["workers"], started["mode"]) == (int(port), 2, "local-http")
    assert set(started["endpoints"]) == {"localhost", "local_network", "external"}
    (status,) = cli.data("status")
    assert (status["pid"], status["running"], status["acme_domain"]) == (started["pid"], True, None)
    assert "key" not in status
    assert cli.error("start", "--port", str(free_port())) == (1, "PROXY_ALREADY_RUNNING")
    assert cli.data("reload")["pid"] == started["pid"]
    restarted = cli.data("restart")
    assert (restarted["pid"], restarted["port"], restarted["workers"]) == (started["pid"], int(port), 2)
    assert cli.error("stop", "--port", "1") == (1, "PROXY_NOT_RUNNING")
    assert cli.data("stop", "--port", port)["pid"] == started["pid"]
    assert cli.data("status") == []
    assert not alive(started["pid"])


@pytest.mark.parametrize("verb", ["stop", "restart", "reload"])
def test_nothing_runs(cli: Cli, verb: str) -> None:
    assert cli.error(verb) == (1, "PROXY_NOT_RUNNING")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--port", "x"], "CONFIG_INVALID"),
        (["--port", "70000"], "CONFIG_INVALID"),
        (["--mode", "https"], "CONFIG_INVALID"),
        (["--mode", "https-acme"], "PROXY_INVALID_CONFIG"),
        (["--mode", "https-acme", "--acme-domain", "*.example.com"], "CONFIG_INVALID"),
        (["--mode", "https-acme", "--acme-domain", "a.example", "--challenge", "dns-01"], "PROXY_INVALID_CONFIG"),
        (["--mode", "dev-selfsigned", "--port", "4000", "--https-port", "4000"], "PROXY_INVALID_CONFIG"),
        (["--fallback", "nothing"], "CONFIG_INVALID"),
        (["--bind", "example.com"], "PROXY_INVALID_CONFIG"),
        (["--nonsense"], "USAGE"),
    ],
)
def test_a_start_that_cannot_be(cli: Cli, arguments: list[str], code: str) -> None:
    assert cli.error("start", *arguments) == (1, code)
    assert cli.data("status") == []


def test_a_log_gets_no_key(cli: Cli, tmp_path: Path) -> None:
    """What a service manager's output is: a file or a socket."""
    with open(tmp_path / "output", "w+", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", "flm", "proxy", "start", "--port", str(free_port())],
            env=cli.environment,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=90,
            check=True,
        )
        output.seek(0)
        assert "flm_" not in output.read()
    assert "flm api-keys create" in done.stderr


def test_in_the_foreground(cli: Cli) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flm", "proxy", "start", "--no-daemon", "--port", str(free_port())],
        env=cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        deadline = time.monotonic() + 60
        while not (status := cli.data("status")) or status[0]["state"] != "running":
            assert time.monotonic() < deadline
        assert status[0]["pid"] == child.pid
        assert cli.data("restart")["pid"] == child.pid
        child.send_signal(signal.SIGINT)
        output, log = child.communicate(timeout=60)
    assert child.returncode == 0
    assert json.loads(output)["data"]["pid"] == child.pid
    assert json.loads(output)["data"]["key"].startswith("flm_"), "somebody reads the pipe"
    assert all(line.startswith("{") for line in log.splitlines())
    assert cli.data("status") == []


def test_options_that_do_nothing_are_told(cli: Cli) -> None:
    """Who names a domain and forgets the mode must not take what runs for HTTPS."""
    port = str(free_port())
    started = cli.run("start", "--port", port, "--acme-domain", "llm.example.com", "--acme-staging")
    assert started.returncode == 0, started.stdout
    assert "in the mode local-http nothing goes by --acme-domain, --acme-staging; `--mode https-acme`" in started.stderr


@pytest.mark.parametrize(
    ("mode", "last_error", "options", "told"),
    [
        ("local-http", None, ["--https-port", "4"], True),
        ("local-http", None, ["--port", "4"], False),
        ("dev-selfsigned", None, ["--https-port", "4"], False),
        ("dev-selfsigned", None, ["--fallback", "none"], True),
        ("local-http", "no certificate", ["--acme-domain", "llm.example.com"], False),
        ("https-acme", None, ["--acme-domain", "llm.example.com", "--https-port", "4"], False),
    ],
)
def test_which_options_do_nothing(
    mode: str, last_error: str | None, options: list[str], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    noun = Noun("proxy", "")
    register(noun)
    warn_of_idle(noun.parser.parse_args(["start", *options]), mode, last_error)
    assert bool(caplog.records) == told


def handle_of(certificate: CertificateLine | None, endpoints: Endpoints) -> Handle:
    """A running proxy, of which only what people are shown matters."""
    return Handle(
        id="1",
        pid=42,
        version="0",
        state="running",
        running=True,
        mode="https-acme",
        listen_addr="[::]:443",
        port=80,
        https_port=443,
        endpoints=endpoints,
        workers=1,
        worker_pids=[43],
        draining_pids=[],
        generation=1,
        started_at="2026-11-24T09:00:00.000Z",
        uptime=7.5,
        engines=[],
        in_flight=0,
        requests=0,
        errors=0,
        log_file=None,
        log_lines_dropped=0,
        acme_domain=None,
        certificate=certificate,
        last_error=None,
    )


def test_people_see_where_clients_go_and_when_the_certificate_ends() -> None:
    line = CertificateLine("https-acme", [], None, None, "UNTIL", "DUE", None, "NEXT", None, True, None)
    head, row = for_people([handle_of(line, Endpoints(None, None, "https://llm.example.com"))]).splitlines()
    assert head.split("  ")[0] == "PID"
    assert re.search(r"ENDPOINT +LISTEN ADDR .*CERTIFICATE UNTIL +NEXT TRY +LAST ERROR", head)
    assert re.search(r"https://llm\.example\.com/v1 +\[::\]:443 .*UNTIL +NEXT +-", row)
    later = msgspec.structs.replace(line, next_attempt_at=None)
    assert re.search(r"UNTIL +DUE ", for_people([handle_of(later, Endpoints(None, None, "https://x"))]))


@pytest.mark.parametrize(
    ("endpoints", "use"),
    [
        (Endpoints("http://127.0.0.1:1", None, None), "http://127.0.0.1:1/v1"),
        (Endpoints("http://127.0.0.1:1", "http://10.0.0.2:1", None), "http://10.0.0.2:1/v1"),
        (Endpoints(None, None, None), "-"),
    ],
)
def test_the_url_for_clients_is_the_one_that_reaches_farthest(endpoints: Endpoints, use: str) -> None:
    table = for_people([handle_of(None, endpoints)])
    assert table.splitlines()[1].split()[3] == use
    assert "CERTIFICATE" not in table
    assert for_people([]) == "(none)"


def test_flags_are_settings() -> None:
    noun = Noun("proxy", "")
    register(noun)
    arguments = noun.parser.parse_args(["start", "--port", "8080", "--bind", "::1", "--log-level", "debug"])
    assert _flags(arguments) == {"proxy.port": "8080", "proxy.bind": "::1", "log.level": "debug"}
    assert _flags(noun.parser.parse_args(["start"])) == {}
