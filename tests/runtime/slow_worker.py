"""A tiny worker whose start takes seconds, as imports from a cold disk do. See `tiny_worker`."""

from __future__ import annotations

import sys
import time

from flm.runtime.worker import begin
from tests.runtime.tiny_worker import create_app

START_SECONDS = 2.0

if __name__ == "__main__":
    time.sleep(START_SECONDS)  # this is what the tests are about: nobody may be refused meanwhile
    begin(sys.argv[1:], create_app, lambda: None)
