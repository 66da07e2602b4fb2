"""A worker that begins to watch a request's client a second too late: `python -m tests.proxy.late_worker`.

The negative control of the measurement in test_cancel_latency: with it the measurement must fail.
"""

from __future__ import annotations

import sys

from flm.proxy import exchange
from flm.runtime.worker import _create_app, _warm_up, begin

if __name__ == "__main__":
    exchange.WATCH_AFTER_SECONDS = 1.0  # type: ignore[misc]  # the point of it
    begin(sys.argv[1:], _create_app, _warm_up)
