"""The child that makes one attempt: `python -P -m flm.tls.attempt FD`, where FD is its end of a socket pair.

Reads one Ask, says what it does line by line (`words`), and ends. All that blocks, blocks here; the memory that it
takes is given back with the process, and a deadline that it misses is kept by whoever kills it. When the other end of
the pair is closed, the process ends at once, wherever it is: nobody is there to serve a challenge or take a pair.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Final

import msgspec

from flm.errors import CommandError
from flm.tls import order
from flm.tls.deadline import Deadline
from flm.tls.issuer import issue
from flm.tls.network import Network
from flm.tls.refusal import Refused
from flm.tls.renewal import window
from flm.tls.words import LONGEST_LINE, Ask, Heard, Said

_HANGUP: Final = 3  # exit code when the other end is gone
_LOST_SECONDS: Final = 10.0  # until a supervisor that does not answer counts as one that cannot


class Line:
    """The conversation. `ask`: what is asked for."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._file = self._socket.makefile("rb")
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self.ask = msgspec.json.decode(self._file.readline(LONGEST_LINE), type=Ask)
        threading.Thread(target=self._listen, daemon=True).start()

    def step(self, step: str, detail: str) -> None:
        self.say(Said("step", step=step, detail=detail))

    def publish(self, token: str, answer: str) -> None:
        self.say(Said("publish", token=token, answer=answer))
        self._confirmed("publish the answer to a challenge")

    def retract(self, token: str) -> None:
        self.say(Said("retract", token=token))
        self._confirmed("take back the answer to a challenge")

    def look(self, name: str) -> None:
        self.say(Said("look", name=name))
        heard = self._answer()
        if not heard.ok:
            raise Refused("rate_limited" if heard.retry_after else "local", heard.message, heard.retry_after)

    def spared(self, name: str) -> None:
        self.say(Said("spared", name=name))
        self._confirmed("note that a validation did not fail")

    def taken(self) -> bool:
        """Whether the last word has arrived."""
        return self._answer().ok

    def say(self, said: Said) -> None:
        try:
            self._socket.sendall(msgspec.json.encode(said) + b"\n")
        except OSError:
            os._exit(_HANGUP)

    def _confirmed(self, what: str) -> None:
        heard = self._answer()
        if not heard.ok:
            raise Refused("local", f"the proxy could not {what}: {heard.message}")

    def _answer(self) -> Heard:
        try:
            return self._heard.get(timeout=_LOST_SECONDS)
        except queue.Empty:
            return Heard(False, "it did not answer")

    def _listen(self) -> None:
        try:
            while line := self._file.readline(LONGEST_LINE):
                self._heard.put(msgspec.json.decode(line, type=Heard))
        except (OSError, msgspec.MsgspecError):
            pass
        os._exit(_HANGUP)


def main() -> None:
    line = Line(int(sys.argv[1]))
    try:
        outcome = _attempt(line)
    except Refused as refused:
        outcome = Said("refused", kind=refused.kind, message=refused.message, retry_after=refused.retry_after)
    except CommandError as error:
        outcome = Said("refused", kind="local", message=error.message)
    except OSError as error:
        outcome = Said(
            "refused", kind="local", message=f"{error.filename or 'this machine'}: {error.strerror or error}"
        )
    except Exception as error:
        # Without what the exception says, which may quote anything; where it happened is enough to mend it.
        sys.stderr.write("".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}\n")
        message = f"FLM itself failed ({type(error).__name__}); please report it with what the log says"
        outcome = Said("refused", kind="local", message=message)
    line.say(outcome)
    if outcome.event == "issued" and line.taken():
        order.forget(Path(line.ask.folder))


def _attempt(line: Line) -> Said:
    deadline = Deadline(line.ask.seconds)
    network = Network(deadline, line.ask.ca_bundle)
    try:
        if line.ask.op == "issue":
            return Said("issued", pem=issue(line.ask, line, network, deadline).pem.decode())
        start, end, retry_after = window(line.ask, network) or (0.0, 0.0, 0.0)
        return Said("window", start=start, end=end, retry_after=retry_after)
    finally:
        network.close()


if __name__ == "__main__":
    main()
