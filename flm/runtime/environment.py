"""What the processes of a proxy get of the environment they are started from: no secret.

An environment is readable under /proc by every process of the same user, for as long as the process lives; a key that
happens to be exported in the shell of whoever starts the proxy has no business there. Pure functions of a mapping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Sockets that were given, by number: whoever inherits the words does not inherit those (sd_listen_fds(3)).
_GIVEN: Final = re.compile(r"LISTEN_(PID|FDS|FDNAMES|PIDFDID)")
# Names that hold secrets by everybody's habit: FLM_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, PGPASSWORD, …
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASS(?!THROUGH)|CREDENTIAL|AUTH(?!OR)|COOKIE", re.IGNORECASE)
# What an interpreter, its libraries and an event loop may need. Workers take nothing else from outside.
_WORKER: Final = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|PYTHON\w*|VIRTUAL_ENV|LD_\w+|DYLD_\w+|MALLOC_\w+|SSL_CERT_(FILE|DIR)|RUST_BACKTRACE"
)


def of_supervisor(environment: Mapping[str, str]) -> dict[str, str]:
    """Everything but secrets and the numbers of sockets: settings and the addresses of engines may stand there."""
    return {name: value for name, value in environment.items() if not (_SECRET.search(name) or _GIVEN.fullmatch(name))}


def of_worker(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker needs to run; what it is to do stands in its boot document."""
    return {name: value for name, value in environment.items() if _WORKER.fullmatch(name)}
