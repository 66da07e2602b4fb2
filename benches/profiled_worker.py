"""FLM's worker under cProfile: what `benches.profile_worker` runs in the place of the plain one.

The profile is of the event loop's thread, from the app's making to its end, and is written where FLM_BENCH_PROFILE
says. cProfile makes calls dearer than they are, and sees nothing of Rust and the kernel: the order
is what counts.
"""

from __future__ import annotations

import cProfile
import os
import sys

from flm.runtime import worker
from flm.runtime.boot import WorkerBoot, unpack

PATH_VARIABLE = "FLM_BENCH_PROFILE"


def create_app(services: worker.Services) -> worker.ServedApp:
    app = worker._create_app(services)
    profile = cProfile.Profile()
    close = app.aclose

    async def aclose() -> None:
        profile.disable()
        profile.dump_stats(os.environ[PATH_VARIABLE])
        await close()

    app.aclose = aclose  # type: ignore[method-assign]
    profile.enable()
    return app


if __name__ == "__main__":
    worker.run(unpack(int(sys.argv[1]), WorkerBoot), create_app)
