"""Last words of a process name the place and the type of an error, and nothing of what was being worked on."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime.crash import describe

CANARY = "canary-of-a-prompt"

PROGRAM = """
import asyncio, gc, logging, resource, sys, threading
from flm.runtime import crash
logging.basicConfig(format="%(message)s", stream=sys.stderr)

def fail(*_):
    raise ValueError("canary-of-a-prompt")

class Unraisable:
    __del__ = fail

async def unawaited():
    crash.watch(asyncio.get_running_loop())
    task = asyncio.ensure_future(asyncio.to_thread(fail))
    await asyncio.wait([task])
    del task
    gc.collect()
    asyncio.get_running_loop().call_soon(fail, "canary-of-a-prompt")
    await asyncio.sleep(0)

crash.prepare()
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
"""


def last_words(ending: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM + ending], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "ending",
    [
        "fail()",
        "thread = threading.Thread(target=fail); thread.start(); thread.join()",
        "unraisable = Unraisable(); del unraisable",
        "asyncio.run(unawaited())",
    ],
    ids=["main", "thread", "unraisable", "unawaited"],
)
def test_last_words_hold_no_text(ending: str) -> None:
    said = last_words(ending)
    assert "ValueError" in said
    assert "in fail" in said
    assert CANARY not in said


def test_without_it_they_would() -> None:
    assert CANARY in last_words("sys.excepthook = sys.__excepthook__; fail()")


def chained() -> None:
    try:
        json.loads(CANARY)
    except ValueError as error:
        raise RuntimeError(CANARY) from error


def grouped() -> None:
    raise ExceptionGroup(CANARY, [KeyError(CANARY)])


@pytest.mark.parametrize(("work", "types"), [(chained, ["RuntimeError", "JSONDecodeError"]), (grouped, ["KeyError"])])
def test_causes_are_named_too(work: Callable[[], None], types: list[str]) -> None:
    with pytest.raises((RuntimeError, ExceptionGroup)) as caught:
        work()
    said = describe(caught.value)
    assert all(name in said for name in types)
    assert CANARY not in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (CommandError(CommandCode.IO_ERROR, "no room"), "CommandError: no room"),
        (ImportError("libmissing.so"), "ImportError: libmissing.so"),
    ],
)
def test_texts_that_help_and_quote_nobody_are_kept(error: Exception, said: str) -> None:
    assert describe(error) == said
