"""What is on this machine's disks of each kind of engine: its program, and what its settings files say.

Does not know any kind of engine: the dialects name the paths, as pure functions of the system, the environment and the
home folder, and read the contents themselves. Anything may stand at those paths, a pipe or a device too, so a file is
opened without waiting, read only if it is a regular one, and up to MAX_FILE_BYTES; what cannot be read is not there.

Blocking, and a path may lead over a network: an event loop calls it in a thread.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from flm.engines.base import Dialect

MAX_FILE_BYTES: Final = 65_536  # a unit or a settings file has a few hundred bytes; a larger one is something else
MAX_FOLDER_ENTRIES: Final = 4_096  # of a folder that is looked through for a name with `*`
MAX_MATCHES: Final = 16  # files that one such name may stand for
MAX_PATHS: Final = 64  # that are tried for one kind


class Survey(msgspec.Struct, frozen=True):
    """`installed`: the kinds whose program is here. `files`: by kind, path to content of the settings found."""

    installed: frozenset[str]
    files: Mapping[str, Mapping[str, bytes]]


def survey(
    dialects: Sequence[Dialect],
    environment: Mapping[str, str],
    system: str,
    home: str,
    *,
    settings: bool = True,
    runnable: Callable[[str], bool],
) -> Survey:
    """Look for the programs and, with `settings`, the settings of every kind. Never raises for what is on the disk."""
    installed = frozenset(
        dialect.kind
        for dialect in dialects
        if any(runnable(path) for path in _matching(dialect.binaries(system, environment, home)))
    )
    files = {dialect.kind: _settings(dialect, environment, system, home) for dialect in dialects if settings}
    return Survey(installed, files)


def executable(path: str) -> bool:
    """Whether `path` is a file that this user may run."""
    try:
        return os.path.isfile(path) and os.access(path, os.X_OK)
    except ValueError:  # a NUL in it
        return False


def content(path: str) -> bytes | None:
    """What stands in the regular file `path`; None if there is none, or it is too large or not ours to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = os.read(descriptor, MAX_FILE_BYTES + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data if len(data) <= MAX_FILE_BYTES else None


def _settings(dialect: Dialect, environment: Mapping[str, str], system: str, home: str) -> dict[str, bytes]:
    """The settings files of one kind, and those that the first ones point to."""
    found = _read(dialect.settings(system, environment, home))
    return found | _read(dialect.further_settings(found))


def _read(paths: Iterable[str]) -> dict[str, bytes]:
    found = {}
    for path in itertools.islice(_matching(paths), MAX_PATHS):
        data = content(path)
        if data is not None:
            found[path] = data
    return found


def _matching(paths: Iterable[str]) -> Iterator[str]:
    """The paths; one whose last part holds `*` gives the names that are there, in order."""
    for path in paths:
        folder, pattern = os.path.split(path)
        if "*" not in pattern:
            yield path
            continue
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in itertools.islice(entries, MAX_FOLDER_ENTRIES)]
        except (OSError, ValueError):
            continue
        yield from (os.path.join(folder, name) for name in sorted(fnmatch.filter(names, pattern))[:MAX_MATCHES])
