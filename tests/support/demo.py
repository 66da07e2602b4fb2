"""A demo engine as a process for one test, and its controls.

    with demo_engine("ollama") as engine:
        ... engine.url ...
        engine.wait("cancelled"); engine.journal()["requests"][-1]["headers"]

The process ends with the test, also when the test process is killed: its standard input is our pipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode, urlsplit


@dataclass(frozen=True)
class Demo:
    """A running demo engine with its controls open."""

    url: str
    model: str
    pid: int

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        address = urlsplit(self.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _control(self, method: str, control: str, **query: object) -> Any:
        status, body = self.request(method, f"/demo/{control}?{urlencode(query)}")
        assert status == 200, (control, query, status, body)
        return json.loads(body)

    def journal(self) -> dict[str, Any]:
        return dict(self._control("GET", "journal"))

    def requests(self, path: str | None = None) -> list[dict[str, Any]]:
        """The requests seen, oldest first; those of one path only, where given."""
        return [one for one in self.journal()["requests"] if path in (None, one["path"])]

    def wait(self, event: str, count: int = 1, timeout: float = 10) -> None:
        """Until an event (see flm.demo.journal) has happened `count` times; fails after `timeout` seconds."""
        self._control("GET", "wait", event=event, count=count, timeout=timeout)

    def release(self, name: str) -> None:
        self._control("POST", "release", name=name)

    def fault(self, path: str, directives: str) -> None:
        """Give every request to `path` these directives (see flm.demo.directives); "" ends it."""
        self._control("POST", "faults", path=path, directives=directives)

    def clear(self) -> None:
        self._control("POST", "clear")

    def end(self) -> None:
        """End the process before its time; returns when nothing answers any more."""
        os.kill(self.pid, signal.SIGTERM)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


@contextmanager
def demo_engine(dialect: str = "openai", *arguments: str, port: int = 0, controls: bool = True) -> Iterator[Demo]:
    """`controls` False: an engine as people have it, which remembers nothing and has no `/demo/` routes."""
    command = [sys.executable, "-m", "flm.demo", "--until-stdin-closes", "--dialect", dialect]
    command += ["--port", str(port), *arguments, *(["--admin"] if controls else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            yield Demo(ready["url"], ready["model"], process.pid)
        finally:
            process.terminate()
