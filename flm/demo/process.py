"""Starts the demo engine in the background, finds it again and ends it: one per run folder.

Identity: the running engine itself holds a lock on `demo.lock` for as long as it lives, whatever way it ends, so a
process id in `demo.json` is believed only while the lock is held, and only if what the caller's `identify` says of that
process is what it said when it was started. The lock is taken by whoever starts the engine and inherited by it, so two
starts at once make one engine.

Knows nothing of settings or of the proxy; blocking, so an event loop calls it in a thread. POSIX.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import msgspec.structs

START_SECONDS = 10.0  # a cold interpreter on a busy machine takes two
STOP_SECONDS = 5.0  # then it is killed
POLL_SECONDS = 0.02
PACE_SECONDS = 0.02  # between two words: so that a person sees a stream

# What tells a living process from another that got the same id later; None if there is none.
Identify = Callable[[int], str | None]


def _anonymous(_pid: int) -> str | None:
    """Where the lock alone has to do."""
    return None


class DemoEngine(msgspec.Struct, frozen=True):
    """A running demo engine."""

    pid: int
    url: str
    dialect: str
    model: str
    identity: str | None = None


class DemoError(Exception):
    """The demo engine could not be started or ended; the message is for people."""


def start(run_folder: Path, *, pace: float = PACE_SECONDS, identify: Identify = _anonymous) -> DemoEngine:
    """Start it, or find the one that runs. It listens when this returns. Raises DemoError, OSError."""
    run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        lock = _take_lock(run_folder)
        if lock is not None:
            try:
                return _spawn(run_folder, lock, pace, identify)
            finally:
                os.close(lock)
        found = find(run_folder, identify)
        if found is not None:
            return found
        time.sleep(POLL_SECONDS)  # another start is under way
    raise DemoError(f"the demo engine did not say within {START_SECONDS:g} s that it listens; try again")


def find(run_folder: Path, identify: Identify = _anonymous) -> DemoEngine | None:
    """The engine that runs for this folder, or None."""
    lock = _take_lock(run_folder) if run_folder.is_dir() else -1
    if lock is not None:
        if lock >= 0:
            os.close(lock)
        return None
    try:
        engine = msgspec.json.decode(_record(run_folder).read_bytes(), type=DemoEngine)
    except (OSError, msgspec.DecodeError):
        return None
    return engine if identify(engine.pid) == engine.identity else None


def stop(run_folder: Path, identify: Identify = _anonymous) -> bool:
    """End it and wait until it is gone. False if none was running. Raises DemoError if it will not go."""
    engine = find(run_folder, identify)
    if engine is None:
        _forget(run_folder)
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, number)
        if _gone(run_folder, STOP_SECONDS):
            _record(run_folder).unlink(missing_ok=True)
            return True
    raise DemoError(f"the demo engine (process {engine.pid}) cannot be ended")


def _record(run_folder: Path) -> Path:
    return run_folder / "demo.json"


def _forget(run_folder: Path) -> None:
    """Take away the record of one that ended in another way."""
    lock = _take_lock(run_folder) if run_folder.is_dir() else None
    if lock is not None:
        _record(run_folder).unlink(missing_ok=True)
        os.close(lock)


def _take_lock(run_folder: Path) -> int | None:
    """A descriptor that holds the lock, or None while an engine (or its start) holds it."""
    descriptor = os.open(run_folder / "demo.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _gone(run_folder: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lock = _take_lock(run_folder)
        if lock is not None:
            os.close(lock)
            return True
        time.sleep(POLL_SECONDS)
    return False


def _spawn(run_folder: Path, lock: int, pace: float, identify: Identify) -> DemoEngine:
    """Start the process with the lock inherited, and wait for its line."""
    _record(run_folder).unlink(missing_ok=True)
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "flm.demo", "--ready-fd", str(writing), "--pace", str(pace)]
    try:
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock, writing),
            start_new_session=True,
            cwd=run_folder,  # not the caller's, which could then not be unmounted
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    with open(reading, "rb", buffering=0):
        line = _line(reading, START_SECONDS)
    try:
        engine = msgspec.json.decode(line, type=DemoEngine)
        engine = msgspec.structs.replace(engine, identity=identify(engine.pid))
    except msgspec.DecodeError:
        process.kill()
        process.wait()
        raise DemoError("the demo engine ended before it listened; `python -m flm.demo` shows why") from None
    _write_record(run_folder, engine)
    # It outlives us on purpose; should it end before us, nothing stays of it.
    threading.Thread(target=process.wait, name="demo-engine", daemon=True).start()
    return engine


def _write_record(run_folder: Path, engine: DemoEngine) -> None:
    """Whole or not at all, and for our eyes only."""
    part = run_folder / f"demo.json.{os.getpid()}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(engine))
    part.replace(_record(run_folder))


def _line(descriptor: int, seconds: float) -> bytes:
    """What is written up to the end of the pipe or of a line; less if it takes too long."""
    received = b""
    deadline = time.monotonic() + seconds
    waiting = select.poll()  # select() refuses descriptors from 1024 on, which a program with many open has
    waiting.register(descriptor, select.POLLIN)
    while b"\n" not in received:
        ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
        data = os.read(descriptor, 4096) if ready else b""
        if not data:
            break
        received += data
    return received
