"""A tiny worker that does as it is told only when it gets SIGUSR1: its loop waits for that first. See `tiny_worker`."""

from __future__ import annotations

import signal
import sys

from flm.runtime.worker import ServedApp, Services, begin
from tests.runtime.tiny_worker import TinyApp

LEAVE_TO_GO_ON = signal.SIGUSR1


class LingeringApp(TinyApp):
    """Told to drain, the first thing of all that a worker does then, it blocks the event loop."""

    def drain(self) -> None:
        if not self._draining:
            signal.sigwait({LEAVE_TO_GO_ON})
        super().drain()


def create_app(services: Services) -> ServedApp:
    return LingeringApp(services)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {LEAVE_TO_GO_ON})  # before there is any other thread
    begin(sys.argv[1:], create_app, lambda: None)
