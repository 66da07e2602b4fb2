"""A real worker with errors planted in it, each with secrets in its text: `python -m tests.security.planted_worker`.

A request to /plant/NAME meets the plant of that name, behind the checks of its head:
raise: an exception in the request's own way; task, callback: in the event loop, awaited by nobody; thread: in a thread;
abort: SIGABRT, which would leave a core file; leak: what FLM must not do, for the negative control.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from flm.proxy import head as heads
from flm.runtime import worker
from tests.security.canaries import ANSWER, CREDENTIAL, PROMPT

_check = heads.check


def planted(scope: Any, head: heads.Head, size: int) -> None:
    _check(scope, head, size)
    prefix, _, name = head.path.partition(b"/plant/")
    if not prefix and name:
        secrets = f"{PROMPT} {ANSWER} {CREDENTIAL} {scope['headers']!r}"
        PLANTS[name.decode()](secrets)


def fail(secrets: str) -> None:
    raise RuntimeError(secrets) from ValueError(secrets)


async def _failing(secrets: str) -> None:
    fail(secrets)


def in_a_task(secrets: str) -> None:
    task = asyncio.get_running_loop().create_task(_failing(secrets))
    task.add_done_callback(lambda _: asyncio.get_running_loop().call_soon(gc.collect))


def in_a_thread(secrets: str) -> None:
    thread = threading.Thread(target=fail, args=(secrets,), name=secrets)
    thread.start()
    thread.join()


def leak(secrets: str) -> None:
    sys.stderr.write(secrets + "\n")
    sys.stderr.flush()


PLANTS: dict[str, Callable[[str], object]] = {
    "raise": fail,
    "task": in_a_task,
    "callback": lambda secrets: asyncio.get_running_loop().call_soon(fail, secrets),
    "thread": in_a_thread,
    "abort": lambda _: os.abort(),
    "leak": leak,
}

if __name__ == "__main__":
    heads.check = planted
    worker.begin(sys.argv[1:], worker._create_app, worker._warm_up)
