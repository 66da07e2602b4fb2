"""A worker of a version whose imports fail. See `tiny_worker`."""

from __future__ import annotations

import sys

from flm.runtime.worker import begin
from tests.runtime.tiny_worker import create_app


def _warm_up() -> None:
    raise ImportError("libmissing.so: cannot open shared object file")


if __name__ == "__main__":
    begin(sys.argv[1:], create_app, _warm_up)
