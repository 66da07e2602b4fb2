"""`make load`: streams through the proxy for some minutes with locust, then restarts and reloads it under load.

Fails unless every answer was exactly right, nothing was dropped, and the medians are within the gate. Reports besides
what the proxy adds to the first token at a hundred streams a second. `--web` opens locust's page instead, for people,
with everything started behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from loadtests import first_token, rates
from loadtests.restart_gate import measure
from loadtests.stage import Stage, stage

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
USERS = ("-u", str(rates.USERS), "-r", str(rates.USERS_STARTED_PER_SECOND))
ERROR_CHARACTERS = 4000  # of locust's own words when it fails; the rest repeats itself
WORD_PACE = 0.02  # seconds between two words: a stream takes about a second, so that many overlap each restart


def locust_command(stage: Stage, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", stage.url, *arguments]


def locust_environment(stage: Stage, plant: str = "") -> dict[str, str]:
    root = str(LOCUSTFILE.parents[1])
    return os.environ | {"PYTHONPATH": root, "FLM_LOAD_KEY": stage.key, "FLM_LOAD_PLANT": plant}


def stream_gate(stage: Stage, minutes: float, plant: str = "") -> bool:
    """100 streams a minute for so long. True if all were right and (nearly) as many as meant were asked for."""
    seconds = max(1, round(minutes * 60))
    how = ["--headless", "-t", f"{seconds}s", "--stop-timeout", "30", "--json", "--only-summary", "--loglevel", "ERROR"]
    command = locust_command(stage, *USERS, *how)
    ended = subprocess.run(command, env=locust_environment(stage, plant), capture_output=True, text=True, check=False)
    try:
        entries = json.loads(ended.stdout)
    except ValueError:
        sys.stderr.write((ended.stdout + ended.stderr)[:ERROR_CHARACTERS])
        return False
    asked = sum(entry["num_requests"] for entry in entries)
    failed = sum(entry["num_failures"] for entry in entries)
    enough = asked >= 0.9 * rates.REQUESTS_PER_MINUTE * minutes
    passed = ended.returncode == 0 and failed == 0 and enough
    print(f"streams: {asked} in {seconds} s, {failed} wrong: {'passed' if passed else 'FAILED'}")
    if not passed:
        sys.stderr.write(ended.stderr[:ERROR_CHARACTERS])
    return passed


def open_page(stage: Stage) -> None:
    """Locust's web page, until Ctrl-C."""
    subprocess.run(locust_command(stage, *USERS), env=locust_environment(stage), check=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long locust streams (default 2)")
    parser.add_argument("--runs", type=int, default=7, help="restarts and reloads that are timed (default 7 each)")
    parser.add_argument("--workers", type=int, default=2, help="workers of the proxy (default 2)")
    parser.add_argument("--web", action="store_true", help="locust's web page instead of the gates")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    with stage(workers=given.workers, controls=False, pace=WORD_PACE) as running:
        if given.web:
            open_page(running)
            return 0
        passed = [stream_gate(running, given.minutes)]
        print(first_token.measure(running).report(), flush=True)
        for verb in ("restart", "reload"):
            verdict = measure(running, verb, given.runs)
            print(verdict.report(), flush=True)
            passed.append(verdict.passed)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
