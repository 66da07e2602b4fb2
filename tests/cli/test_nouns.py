"""Each noun: what its verbs print as JSON and as text, and how they fail."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from flm._native import KEY_PATTERN
from flm.engines.registry import DIALECTS
from flm.services.engines import EngineService
from tests.cli.conftest import Flm, Said, process
from tests.runtime.harness import Running, running
from tests.support.certificates import Authority
from tests.support.demo import Demo, demo_engine
from tests.support.tls_front import tls_front


class TestConfig:
    def test_from_unset_to_set_and_back(self, flm: Flm) -> None:
        assert flm("config", "get", "proxy.workers").data == {
            "key": "proxy.workers", "value": 1, "default": 1, "source": "default", "running": None
        }  # fmt: skip
        assert flm("config", "set", "proxy.workers", "4").data["value"] == 4
        assert flm("config", "get", "proxy.workers").data["source"] == "config"
        assert flm("config", "unset", "proxy.workers").data["value"] == 1
        assert flm("config", "unset", "proxy.workers").error[0] == "CONFIG_NOT_SET"

    def test_a_list_of_all(self, flm: Flm) -> None:
        rows = flm("config", "list").data
        assert {"proxy.port", "engine.cache_ttl_seconds", "log.keep"} <= {row["key"] for row in rows}
        assert all(list(row) == ["key", "value", "default", "source", "running"] for row in rows)

    @pytest.mark.parametrize("arguments", [("set", "proxy.port", "0"), ("set", "no.such", "1"), ("get", "no.such")])
    def test_what_is_refused(self, flm: Flm, arguments: tuple[str, ...]) -> None:
        said = flm("config", *arguments)
        assert (said.code, said.error[0]) == (1, "CONFIG_INVALID")

    def test_a_negative_value_is_a_value(self, flm: Flm) -> None:
        assert flm("config", "set", "proxy.port", "-5").error[0] in ("CONFIG_INVALID", "USAGE")

    def test_bounds_are_told_in_whole(self, flm: Flm) -> None:
        assert "from 65536 to 1099511627776, not" in flm("config", "set", "audit.max_bytes", "1").error[1]
        assert "from 0.001 to 36500, not" in flm("config", "set", "audit.retention_days", "0").error[1]

    def test_the_environment_shows(self, flm: Flm, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLM_PROXY_PORT", "4711")
        assert flm("config", "get", "proxy.port").data["source"] == "environment"
        assert "4711" in flm("config", "get", "proxy.port", "--format", "text").out
        monkeypatch.setenv("FLM_PROXY_PORT", "x")
        assert "FLM_PROXY_PORT" in flm("config", "list").error[1]


class TestApiKeys:
    def test_made_listed_revoked(self, flm: Flm) -> None:
        created = flm("api-keys", "create", "--label", "laptop").data
        assert re.fullmatch(KEY_PATTERN, created["key"])
        (listed,) = flm("api-keys", "list").data
        assert listed == {name: value for name, value in created.items() if name not in ("key", "warnings")}
        assert set(listed) >= {"id", "label", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at"}
        assert flm("api-keys", "revoke", created["id"]).data["revoked_at"]
        assert flm("api-keys", "list").data[0]["revoked_at"]

    def test_as_text(self, flm: Flm) -> None:
        said = flm("api-keys", "create", "--label", "laptop", "--format", "text")
        assert re.search(r"^key +flm_", said.out, re.MULTILINE)
        listed = flm("api-keys", "list", "--format", "text").out
        assert "laptop" in listed
        assert "flm_" not in listed

    def test_as_text_says_what_a_key_is_bound_to(self, flm: Flm) -> None:
        flm("api-keys", "create", "--label", "narrow", "--model", "llama*", "--engine", "gpu1")
        head, row = flm("api-keys", "list", "--format", "text").out.splitlines()
        assert ("MODELS" in head, "ENGINES" in head) == (True, True)
        assert row[head.index("MODELS") :].split()[:2] == ["llama*", "gpu1"]

    def test_what_is_refused(self, flm: Flm) -> None:
        assert flm("api-keys", "create", "--label", "").error[0] == "USAGE"
        assert flm("api-keys", "revoke", "nobody").error[0] == "KEY_NOT_FOUND"

    def test_made_for_a_while_for_a_purpose_and_a_place(self, flm: Flm) -> None:
        created = flm(
            "api-keys", "create", "--label", "narrow", "--expires", "2099-01-31T12:00:00Z", "--scope", "models, chat",
            "--scope", "timing", "--model", "llama*", "--model", "flm://e/m", "--engine", "e"
        ).data  # fmt: skip
        assert created["expires_at"] == "2099-01-31T12:00:00Z"
        assert created["scopes"] == ["models", "chat", "timing"]
        assert (created["models"], created["engines"]) == (["llama*", "flm://e/m"], ["e"])
        (listed,) = flm("api-keys", "list").data
        assert listed == {name: value for name, value in created.items() if name not in ("key", "warnings")}

    def test_rotated(self, flm: Flm) -> None:
        first = flm("api-keys", "create", "--label", "laptop").data
        second = flm("api-keys", "rotate", first["id"]).data
        third = flm("api-keys", "rotate", "laptop", "--grace", "24h").data
        assert (second["replaces"], second["replaced_valid_until"]) == (first["id"], None)
        assert third["replaces"] == second["id"]
        assert third["replaced_valid_until"]
        assert len({first["key"], second["key"], third["key"]}) == 3
        rows = {row["id"]: row for row in flm("api-keys", "list").data}
        assert rows[first["id"]]["revoked_at"]
        assert rows[second["id"]]["revoked_at"] is None
        assert rows[second["id"]]["expires_at"] == third["replaced_valid_until"]
        text = flm("api-keys", "rotate", third["id"], "--format", "text").out
        assert re.search(r"^key +flm_", text, re.MULTILINE)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("create", "--label", "x", "--expires", "soon"),
            ("create", "--label", "x", "--scope", "admin"),
            ("create", "--label", "x", "--scope", ""),
            ("create", "--label", "x", "--model", ""),
            ("create", "--label", "x", "--engine", "a,b"),
            ("create", "--label", "x", "--model", "a", "--scope", "passthrough"),
            ("rotate",),
            ("rotate", "x", "--grace", "0s"),
        ],
    )
    def test_what_makes_no_sense(self, flm: Flm, arguments: tuple[str, ...]) -> None:
        said = flm("api-keys", *arguments)
        assert (said.code, said.error[0]) == (1, "USAGE")
        assert flm("api-keys", "list").data == []

    def test_help_says_what_can_be_said(self, flm: Flm) -> None:
        text = flm("api-keys", "create", "--help").out
        for word in ("--expires", "30d", "--scope", "passthrough", "embeddings", "--model", "--engine", "--label"):
            assert word in text
        assert "24h" in flm("api-keys", "rotate", "--help").out

    def test_ten_processes_at_once_on_a_new_folder(self, flm: Flm) -> None:
        children = [process("api-keys", "create", "--label", f"k{number}") for number in range(10)]
        said = [Said(0, child.communicate(timeout=100)[0].decode(), "") for child in children]
        assert [child.returncode for child in children] == [0] * 10
        made = {one.data["id"] for one in said}
        assert {row["id"] for row in flm("api-keys", "list").data} == made
        assert len(made) == 10
        assert flm("check").code == 0


class TestCheck:
    def test_well(self, flm: Flm) -> None:
        flm("api-keys", "create", "--label", "x")
        rows = flm("check").data
        assert [(row["name"], row["ok"]) for row in rows] == [
            ("config.db", True),
            ("security.db", True),
            ("pepper", True),
            ("audit.db", True),
        ]
        assert flm("check", "--verbose").data[0]["bytes"] > 0

    def test_damage(self, flm: Flm, home: Path) -> None:
        flm("api-keys", "create", "--label", "x")
        (home / "security.db").write_bytes(b"garbage")
        said = flm("check")
        assert (said.code, said.error[0]) == (2, "DB_ERROR")
        assert "security.db" in said.error[1]
        assert (home / "security.db").read_bytes() == b"garbage"
        assert flm("api-keys", "list").error[0] == "DB_ERROR"


class TestEngines:
    def test_added_listed_removed(self, flm: Flm) -> None:
        with demo_engine("openai") as engine:
            added = flm("engines", "add", "--id", "gpu1", "--kind", "openai", "--url", engine.url).data
            assert set(added) >= {
                "id", "kind", "url", "status", "version", "latency_ms", "checked_at", "source", "last_error"
            }  # fmt: skip
            assert (added["status"], added["source"]) == ("RunningHealthy", "registered")
            assert "gpu1" in {row["id"] for row in flm("engines", "list").data}
            assert flm("models", "list", "--engine", "gpu1").data[0]["id"] == f"flm://gpu1/{engine.model}"
            assert "flm://gpu1/" in flm("models", "list", "--format", "text").out
        assert flm("engines", "remove", "gpu1").data == {"id": "gpu1", "removed": True}
        assert flm("engines", "remove", "gpu1").error[0] == "ENGINE_NOT_FOUND"
        assert "gpu1" not in {row["id"] for row in flm("engines", "detect", "--fresh").data}

    def test_a_credential_from_a_variable_a_file_or_stdin(
        self, flm: Flm, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "key").write_text("canary-71c\n")
        monkeypatch.setenv("GPU_KEY", "canary-71c")
        base = ("engines", "add", "--kind", "openai")
        with demo_engine("openai", "--api-key-file", str(tmp_path / "key")) as engine:
            for name, option in (("a", ("--api-key-env", "GPU_KEY")), ("b", ("--api-key-file", str(tmp_path / "key")))):
                said = flm(*base, "--id", name, "--url", engine.url, *option)
                assert said.data["status"] == "RunningHealthy"
                assert "canary" not in said.out + said.err
            child = process(*base, "--id", "c", "--url", engine.url, "--api-key-file", "-", stdin=subprocess.PIPE)
            out, _ = child.communicate(b"canary-71c\n", timeout=60)
            assert json.loads(out)["data"]["status"] == "RunningHealthy"
            assert flm(*base, "--id", "d", "--url", engine.url).data["status"] == "ErrorApi"
        assert "canary" not in flm("engines", "list").out

    def test_a_ca_file_that_is_missing_none_or_out_of_place(self, flm: Flm, tmp_path: Path) -> None:
        (tmp_path / "none.pem").write_text("no certificate")
        base = ("engines", "add", "--id", "a", "--kind", "openai", "--url")
        for url, file, words in [
            ("https://127.0.0.1:1", "/no/such/file", "the CA file /no/such/file cannot be read: No such file"),
            ("https://127.0.0.1:1", str(tmp_path), "cannot be read: Is a directory"),
            ("https://127.0.0.1:1", str(tmp_path / "none.pem"), "holds no certificate in PEM form"),
            ("http://127.0.0.1:1", str(tmp_path / "none.pem"), "is not https://"),
        ]:
            said = flm(*base, url, "--ca-file", file)
            assert (said.code, said.error[0]) == (1, "USAGE")
            assert words in said.error[1]
        assert flm("engines", "list").data == []

    def test_a_ca_file(self, flm: Flm, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "ca", "CA")
        with demo_engine("openai") as engine, tls_front(authority.issue("DNS:localhost"), engine.url) as front:
            base = ("engines", "add", "--kind", "openai", "--url", front.url)
            assert flm(*base, "--id", "a", "--ca-file", str(authority.file)).data["status"] == "RunningHealthy"
            without = flm(*base, "--id", "b").data
            assert without["status"] == "ErrorNetwork"
            assert "--ca-file" in without["last_error"]
            authority.file.unlink()  # it was read then
            rows = {row["id"]: row["status"] for row in flm("engines", "detect", "--fresh").data}
            assert rows == {"a": "RunningHealthy", "b": "ErrorNetwork"}
            assert [row["id"] for row in flm("models", "list").data] == ["flm://a/demo"]

    def test_a_credential_file_that_is_not_there(self, flm: Flm) -> None:
        said = flm(
            "engines", "add", "--id", "a", "--kind", "openai", "--url", "http://127.0.0.1:1", "--api-key-file", "/no"
        )
        assert (said.code, *said.error) == (1, "USAGE", "the key file /no cannot be read: No such file or directory")

    def test_help_names_every_kind(self, flm: Flm) -> None:
        for verb in ("add", "detect"):
            assert ", ".join(DIALECTS) in " ".join(flm("engines", verb, "--help").out.split())

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("engines", "detect", "--engine", "nonsense"), "ENGINE_NOT_FOUND"),
            (("engines", "add", "--id", "A", "--kind", "openai", "--url", "http://127.0.0.1:1"), "USAGE"),
            (("engines", "add", "--id", "a", "--kind", "x", "--url", "http://127.0.0.1:1"), "USAGE"),
            (("engines", "add", "--id", "a", "--kind", "openai", "--url", "nonsense"), "USAGE"),
            (("models", "list", "--engine", "nonsense"), "ENGINE_NOT_FOUND"),
            (("chat", "--prompt", "x"), "PROXY_NOT_RUNNING"),
            (("proxy", "reload"), "PROXY_NOT_RUNNING"),
        ],
    )
    def test_what_is_refused(self, flm: Flm, arguments: tuple[str, ...], code: str) -> None:
        assert flm(*arguments).error[0] == code

    def test_aliases_set_listed_removed(self, flm: Flm) -> None:
        said = flm("models", "alias", "set", "small", "flm://a/m:7b")
        assert said.data == {"alias": "small", "target": "flm://a/m:7b"}
        assert flm("models", "alias", "list").data == [{"alias": "small", "target": "flm://a/m:7b"}]
        assert "small" in flm("models", "alias", "list", "--format", "text").out
        assert flm("models", "alias", "remove", "small").data == {"alias": "small", "removed": True}
        assert flm("models", "alias", "list").data == []
        assert flm("models", "alias", "remove", "small").error[0] == "CONFIG_NOT_SET"
        for wrong in (("set", "small"), ("set", "flm://a/b", "m"), ("forget", "small"), ()):
            assert flm("models", "alias", *wrong).error[0] == "USAGE"

    def test_detection_takes_five_seconds_at_most_whatever_listens(
        self, flm: Flm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A port that accepts and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("FLM_ENGINE_DISCOVER", "true")
            monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
            began = time.monotonic()
            found = flm("engines", "detect", "--fresh").data
            assert time.monotonic() - began < 5
            assert f"http://127.0.0.1:{silent.getsockname()[1]}" not in {
                row["url"] for row in found if row["status"].startswith("Running")
            }

    def test_demo(self, flm: Flm) -> None:
        try:
            started = flm("engines", "demo").data
            assert started["engine"]["id"] == "demo"
            assert started["model"] == "flm://demo/demo"
        finally:
            assert flm("engines", "demo", "--stop").data == {"stopped": True}


class TestChat:
    """Processes, since Ctrl-C and a terminal's text are theirs; the proxy and its worker are real."""

    @staticmethod
    async def ask(proxy: Running, *arguments: str) -> subprocess.Popen[bytes]:
        import os

        environment = {**os.environ, "FLM_HOME": str(proxy.folder.root)}
        return await asyncio.to_thread(process, "chat", *arguments, env=environment)

    def with_proxy(self, tmp_path: Path, main: object, *arguments: str) -> None:
        async def outer(engine: Demo) -> None:
            async with running(tmp_path, worker_module="flm.runtime.worker") as proxy:
                await EngineService(proxy.folder).add("demo", "openai", engine.url)
                await main(proxy, engine)  # type: ignore[operator]

        with demo_engine("openai", *arguments) as engine:
            asyncio.run(outer(engine))

    def test_json_text_and_stream(self, tmp_path: Path) -> None:
        async def main(proxy: Running, engine: Demo) -> None:
            answers = []
            for options in ((), ("--format", "text"), ("--stream",), ("--stream", "--format", "json")):
                child = await self.ask(proxy, "--prompt", "Hi", "--model", f"flm://demo/{engine.model}", *options)
                out, err = await asyncio.to_thread(child.communicate)
                assert (child.returncode, err) == (0, b"")
                answers.append(out.decode())
            whole, text, streamed, document = answers
            content = json.loads(whole)["data"]["content"]
            assert text == streamed == content + "\n"
            assert json.loads(document)["data"]["content"] == content

        self.with_proxy(tmp_path, main)

    def test_ctrl_c_stops_the_engine(self, tmp_path: Path) -> None:
        async def main(proxy: Running, engine: Demo) -> None:
            engine.fault("/v1/chat/completions", "demo: endless between=0.01")
            child = await self.ask(proxy, "--prompt", "Hi", "--model", "demo", "--stream")
            assert child.stdout is not None
            assert await asyncio.to_thread(child.stdout.read, 10)
            child.send_signal(signal.SIGINT)
            await asyncio.to_thread(engine.wait, "cancelled")
            _, err = await asyncio.to_thread(child.communicate)
            assert (child.returncode, err) == (130, b"")

        self.with_proxy(tmp_path, main)

    def test_a_reader_that_leaves_stops_the_engine(self, tmp_path: Path) -> None:
        async def main(proxy: Running, engine: Demo) -> None:
            engine.fault("/v1/chat/completions", "demo: endless between=0.01")
            child = await self.ask(proxy, "--prompt", "Hi", "--model", "demo", "--stream")
            assert child.stdout is not None
            assert await asyncio.to_thread(child.stdout.read, 10)
            child.stdout.close()
            await asyncio.to_thread(engine.wait, "cancelled")
            assert child.stderr is not None
            assert await asyncio.to_thread(child.stderr.read) == b""
            child.stderr.close()
            assert await asyncio.to_thread(child.wait) == 141

        self.with_proxy(tmp_path, main)

    def test_errors_as_people_read_them(self, tmp_path: Path) -> None:
        async def main(proxy: Running, engine: Demo) -> None:
            for arguments, expected in (
                (("--model", "nothing", "--stream"), b"ENGINE_NOT_FOUND: "),
                (("--model", "nothing"), b'{\n  "error": {\n    "code": "ENGINE_NOT_FOUND",'),
            ):
                child = await self.ask(proxy, "--prompt", "Hi", *arguments)
                out, _ = await asyncio.to_thread(child.communicate)
                assert child.returncode == 1
                assert out.startswith(expected)

        self.with_proxy(tmp_path, main)
