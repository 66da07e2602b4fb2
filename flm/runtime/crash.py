"""What a crash of a process of ours leaves behind: where it was and of what type, and no key, prompt or answer.

The text of an exception may quote what was being worked on (a decoder quotes its input), so it is kept only for the
types whose text is about the system or is written by FLM for people. The interpreter's own last words, which would
quote everything, are replaced by a log line. No core file is written: it would hold all of memory.

Knows no log; says everything to `logging`.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sqlite3
import sys
import threading
import traceback
from typing import Any, Final

from flm._native import NativeError
from flm.errors import FlmError

_PLAIN: Final = (OSError, ImportError, MemoryError, RecursionError, sqlite3.Error, FlmError, NativeError)
_FRAMES: Final = 30  # of the end of a traceback: more of a runaway recursion says nothing new
_LINKS: Final = 8  # causes of causes

log = logging.getLogger("flm.crash")


def prepare() -> None:
    """For the whole process: no core file, and last words without secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.excepthook = lambda kind, error, trace: _last_words("the process ends", error)
    sys.unraisablehook = lambda unraisable: _last_words("an error was ignored", unraisable.exc_value)
    threading.excepthook = lambda arguments: _last_words("a thread ends", arguments.exc_value)


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """For one event loop: what nobody awaited is logged without the text that asyncio would repeat."""
    loop.set_exception_handler(_unawaited)


def describe(error: BaseException) -> str:
    """An exception and its causes with their places, as a traceback has them; texts only where they are harmless."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(links) < _LINKS:
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\ncaused by ".join(_one(each) for each in links)


def _one(error: BaseException) -> str:
    name = type(error).__name__
    text = f": {error}" if isinstance(error, _PLAIN) else ""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    inner = "".join(f"\n{describe(each)}" for each in error.exceptions) if isinstance(error, BaseExceptionGroup) else ""
    return f"{name}{text}{places}{inner}"


def _last_words(what: str, error: BaseException | None) -> None:
    log.critical("%s: %s", what, describe(error) if error is not None else "no exception is known")


def _unawaited(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    # Only asyncio's own words: the rest of the context are representations of objects, and so are the arguments of a
    # callback that stand behind its name in the message.
    message = str(context.get("message", "an error that nobody awaited")).partition("(")[0]
    log.error("%s%s", message, f": {describe(error)}" if error is not None else "")
