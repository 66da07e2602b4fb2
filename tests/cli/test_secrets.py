"""What is secret is shown once and then nowhere: not in a file, a command line, an environment or another answer."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

from tests.cli.conftest import Flm
from tests.support.demo import demo_engine

ENGINE_SECRET = "sk-canary-of-the-engine-0123456789"


def ask(port: int, key: str, model: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "prompt-canary"}]})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
    status = connection.getresponse().status
    connection.close()
    return status


def everything(home: Path, pids: list[int]) -> dict[str, bytes]:
    """Every byte FLM left behind, and what the system shows of its processes."""
    found = {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for pid in pids:
        for name in ("cmdline", "environ", "comm"):
            found[f"{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    return found


def holders(secret: str, places: dict[str, bytes]) -> list[str]:
    return [name for name, content in places.items() if secret.encode() in content]


def test_secrets_are_nowhere_after_traffic(flm: Flm, home: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    credential = tmp_path / "credential"
    credential.write_text(ENGINE_SECRET)
    with demo_engine() as engine:
        flm("engines", "add", "--id", "e", "--kind", "openai", "--url", engine.url, "--api-key-file", str(credential))
        started = flm("proxy", "start", "--port", str(port), "--log-level", "debug").data
        try:
            made = flm("api-keys", "create", "--label", "second").data["key"]
            keys = [started["key"], made]
            wrong = made[:-8] + "AAAAAAAA"
            model = flm("models", "list").data[0]["id"]
            assert [ask(port, key, model) for key in keys] == [200, 200]
            assert [ask(port, key, model) for key in (wrong, made + "x")] == [401, 401]
            flm("proxy", "reload")
            said = [flm(*words).out for words in (("proxy", "status"), ("api-keys", "list"), ("engines", "list"))]
            handle = json.loads(said[0])["data"][0]
            places = everything(home, [handle["pid"], *handle["worker_pids"]])
        finally:
            stopped = flm("proxy", "stop").out
    places.update(everything(home, []))
    places["answers"] = "".join([*said, stopped]).encode()
    assert any(b'"endpoint":"/v1/chat/completions"' in content for content in places.values())  # the log is there
    for secret in (*keys, *(key[17:] for key in keys), wrong, "prompt-canary"):
        assert holders(secret, places) == []
    # The engine's credential must be usable again: in its database, and in memory for the workers; nowhere else.
    allowed = ("security.db", "security.db-wal", "run/shared")
    assert [name for name in holders(ENGINE_SECRET, places) if not name.endswith(allowed)] == []
    assert holders(ENGINE_SECRET, places)  # a search that finds what is there


def test_a_secret_that_is_given_as_an_argument_by_mistake_is_not_repeated(flm: Flm, home: Path) -> None:
    key = flm("api-keys", "create", "--label", "a").data["key"]
    url = ("--id", "x", "--kind", "openai", "--url", "http://127.0.0.1:1")
    mistakes = [
        (key,),
        ("api-keys", "revoke", key),
        ("api-keys", "create", "--label", "x", "--scope", key),
        ("api-keys", "create", "--label", "x", "--model", key),
        ("api-keys", "create", "--label", "x", "--engine", key),
        ("models", "alias", "set", key, "m"),
        ("models", "alias", "set", "m", key),
        ("config", "set", key, "1"),
        ("proxy", "start", "--port", key),
        ("security", "audit-logs", "--limit", key),
        ("engines", "add", *url, "--api-key", key),
        ("engines", "add", *url, "--api-key", ENGINE_SECRET),
        ("engines", "add", *url, f"--api-key={ENGINE_SECRET}"),
    ]
    for words in mistakes:
        for more in ((), ("--format", "text")):
            said = flm(*words, *more)
            assert said.code == 1, words
            assert said.out, words
            for secret in (key[17:], key[17:40], ENGINE_SECRET):
                assert secret not in said.out + said.err, words
    assert holders(key[17:40], everything(home, [])) == []
    assert flm("engines", "add", *url, "--api-key", ENGINE_SECRET).error[1] == (
        "unrecognized arguments: --api-key …\ndid you mean --api-key-env?"
    )
