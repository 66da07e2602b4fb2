"""No secret goes on to the processes of a proxy."""

from __future__ import annotations

import pytest

from flm.config import SETTINGS as ALL_SETTINGS
from flm.runtime.environment import of_supervisor, of_worker

SECRETS = ["FLM_API_KEY", "FLM_BACKUP_PASSPHRASE", "OPENAI_API_KEY", "hf_token", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"]
SETTINGS = ["FLM_PROXY_PORT", "FLM_HOME", "OLLAMA_HOST", "GIT_AUTHOR_NAME", "TERM"]
NEEDED = ["PATH", "HOME", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR"]


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_stay_outside(name: str) -> None:
    assert of_supervisor({name: "x"}) == of_worker({name: "x"}) == {}


@pytest.mark.parametrize("name", ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"])
def test_numbers_of_sockets_stay_outside(name: str) -> None:
    assert of_supervisor({name: "3"}) == of_worker({name: "3"}) == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_the_supervisors(name: str) -> None:
    assert of_supervisor({name: "x"}) == {name: "x"}
    assert of_worker({name: "x"}) == {}


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_needed_to_run_goes_on(name: str) -> None:
    assert of_supervisor({name: "x"}) == of_worker({name: "x"}) == {name: "x"}


def test_every_setting_reaches_the_supervisor() -> None:
    variables = {setting.variable: "x" for setting in ALL_SETTINGS.values()}
    assert of_supervisor(variables) == variables
