"""A certificate of five minutes that is renewed while 200 clients stream, and the proof that one cut stream is found.

    python -m tests.gates.renewal      # writes docs/gates/renewal.md; ends with 0 only if all holds

The same code as a test of tests/acme, whose certificate lives for forty seconds, with a real CA on the same machine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from tests.acme.conftest import PROFILES
from tests.acme.streaming import CLIENTS, Seen, renewed_under_streams
from tests.acme.test_proxy import proxy_of, started
from tests.gates import page
from tests.gates.page import Row
from tests.real import locations
from tests.support import pebble
from tests.support.pebble import Ca

LIFE_SECONDS = 300.0
EVENTS = 1040  # four a second, for 260 s: a renewal comes after 200 s at the latest, and may take its time
_CONTROL_EVENTS = 160
NAME = f"a certificate of {LIFE_SECONDS:.0f} s is renewed while {CLIENTS} clients stream"
CONTROL = f"one of {CLIENTS} streams is cut when the new certificate is shown"


def as_it_is(seen: Seen, seconds: float) -> Row:
    """What is said of the renewal itself."""
    fault = seen.fault()
    if not fault and abs(seen.life - LIFE_SECONDS) > 1:
        fault = f"the certificate lived for {seen.life:.0f} s"
    counts = (
        f"renewed {seen.apart:.0f} s after its beginning, by the certificates' own dates; {seen.whole} streams of "
        f"{EVENTS} events whole; {seen.asked} handshakes and requests meanwhile, all answered"
    )
    return Row(NAME, fault or "passed", seconds, counts)


def control(seen: Seen, seconds: float) -> Row:
    """Whether the one stream that was cut, and no other, is why the same would be red."""
    found = len(seen.broken) == 1 and seen.whole == CLIENTS - 1
    fault = seen.fault()
    return Row(CONTROL, "passed" if found and fault else "NOT FOUND", seconds, f"red as it must be: {fault}")


async def _run(ca: Ca, root: Path, profile: str, events: int, *, cut: bool = False) -> tuple[Seen, float]:
    began = time.monotonic()
    async with started(proxy_of(ca, root, acme__profile=profile, proxy__workers="2")) as proxy:
        life = PROFILES[profile]["validityPeriod"]
        assert isinstance(life, int)
        seen = await renewed_under_streams(proxy, events, life, cut=cut)
    return seen, time.monotonic() - began


def main() -> int:
    """Run, write, and say with the exit code whether all holds."""
    if not locations.is_built(pebble.folder()):
        print("failed: the gate needs Pebble: `make pebble` builds it")
        return 1
    for name in [name for name in os.environ if name.startswith("FLM_")]:
        del os.environ[name]
    os.environ |= {"PYTHONPATH": str(page.ROOT), "FLM_ENGINE_DISCOVER": "false"}
    commit = page.commit_of("flm", "tests/acme", "tests/runtime", "tests/support", "tests/gates")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with pebble.running(root / "ca", profiles=PROFILES, AUTHZREUSE=0) as ca:
            rows = [as_it_is(*asyncio.run(_run(ca, root / "one", "minutes", EVENTS)))]
            rows.append(control(*asyncio.run(_run(ca, root / "two", "moments", _CONTROL_EVENTS, cut=True))))
    facts = [
        ("commit", commit),
        ("when", page.now()),
        ("CA", f"Pebble {pebble.VERSION} on the same machine, which refuses every seventh nonce"),
        ("machine", page.machine()),
    ]
    head = ("renewal, or fault brought about", "outcome", "s", "seen")
    page.write("renewal", page.render("A renewal while clients stream", "gate-renewal", facts, head, rows))
    return page.verdict(rows)


if __name__ == "__main__":
    raise SystemExit(main())
