"""What a view makes of a snapshot that holds what nobody can use."""

from __future__ import annotations

import pytest

from flm.config import Settings
from flm.errors import ErrorKind, RequestError
from flm.proxy.view import View, open_pool
from flm.snapshot import Engine, Snapshot


@pytest.mark.parametrize(
    "spoiled",
    [
        Engine("bad", "openai", "javascript:1", "RunningHealthy"),
        Engine("bad", "openai", "http://\0", "RunningHealthy"),
        Engine("bad", "openai", "http://127.0.0.1:1", "RunningHealthy", credential="two words"),
    ],
    ids=["scheme", "host", "credential"],
)
def test_an_engine_that_another_program_spoiled_hinders_no_other(spoiled: Engine) -> None:
    good = Engine("good", "openai", "http://127.0.0.1:1", "RunningHealthy")

    def opener(*arguments: object) -> object:
        return open_pool(*arguments, lambda *_: None)  # type: ignore[arg-type]

    view = View(1, Snapshot("instance", Settings(), (spoiled, good)), {}, opener)  # type: ignore[arg-type]
    assert view.engine("good").engine == good
    with pytest.raises(RequestError, match="remove it, and add it again") as refused:
        view.engine("bad")
    assert refused.value.kind is ErrorKind.ENGINE_UNAVAILABLE
