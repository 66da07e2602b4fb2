"""`flm security backup …`: where the secret comes from, on a terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from flm.store import sealed
from tests.cli.conftest import Flm

PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LOG_N", 10)  # a millisecond instead of half a second


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\r\nwhat else is in the file\n")
    return str(path)


def test_a_passphrase_from_a_file_and_from_the_environment_are_the_same(
    flm: Flm, tmp_path: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flm("api-keys", "create", "--label", "laptop")
    made = flm("security", "backup", "create", "--output", str(tmp_path / "b"), "--passphrase-file", passphrase).data
    assert made["contains"] == ["config.db", "security.db", "pepper"]
    assert made["bytes"] == (tmp_path / "b").stat().st_size
    flm("api-keys", "create", "--label", "another")
    monkeypatch.setenv("FLM_BACKUP_PASSPHRASE", PASSPHRASE)
    restored = flm("security", "backup", "restore", str(tmp_path / "b")).data
    assert (restored["keys"], restored["created_at"]) == (1, made["created_at"])
    assert [key["label"] for key in flm("api-keys", "list").data] == ["laptop"]
    # What it says on going back holds when typed.
    flm(*restored["to_undo"].split()[1:])
    assert [key["label"] for key in flm("api-keys", "list").data] == ["laptop", "another"]


def test_a_key_file(flm: Flm, tmp_path: Path) -> None:
    key, file = tmp_path / "key", tmp_path / "b"
    key.write_bytes(bytes(range(32)))
    flm("security", "backup", "create", "--output", str(file), "--key-file", str(key))
    code, message = flm("security", "backup", "restore", str(file)).error
    assert (code, "--key-file" in message) == ("USAGE", True)
    assert flm("security", "backup", "restore", str(file), "--key-file", str(key)).data["keys"] == 0
    key.write_bytes(bytes(31) + b"x")
    assert flm("security", "backup", "restore", str(file), "--key-file", str(key)).error[0] == "BACKUP_INVALID"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "there is no terminal"),
        (("--passphrase-file", "{}/none"), "cannot be read"),
        (("--passphrase-file", "{}/empty"), "is empty"),
        (("--key-file", "{}/empty"), "0 bytes"),
        (("--key-file", "{}/empty", "--passphrase-file", "{}/empty"), "not allowed with"),
    ],
)
def test_no_secret_is_wrong_usage(flm: Flm, tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    (tmp_path / "empty").touch()
    given = [option.format(tmp_path) for option in options]
    code, message = flm("security", "backup", "create", "--output", str(tmp_path / "b"), *given).error
    assert (code, why in message) == ("USAGE", True), message
    assert not (tmp_path / "b").exists()


def test_nobody_is_asked_for_the_passphrase_of_something_else(flm: Flm, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    code, message = flm("security", "backup", "restore", str(tmp_path / "photo")).error
    assert (code, "no backup of FLM's" in message) == ("BACKUP_INVALID", True)


def typed(*words: str, answers: list[str]) -> tuple[int, bytes, bytes]:
    """A command on a terminal of its own, somebody typing an answer to each prompt: (exit code, stdout, the screen)."""
    screen_end, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "flm", *words],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: _own_terminal(terminal),
    )
    os.close(terminal)
    screen = b""
    for answer in answers:
        prompts = screen.count(b": ")
        while screen.count(b": ") == prompts:
            screen += os.read(screen_end, 1000)
        os.write(screen_end, answer.encode())
    out = child.communicate(timeout=60)[0]
    try:
        while piece := os.read(screen_end, 1000):
            screen += piece
    except OSError:
        pass  # nobody has the other end any more
    os.close(screen_end)
    return child.returncode, out, screen


def _own_terminal(terminal: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_on_a_terminal_it_asks_twice_and_shows_nothing(tmp_path: Path, flm: Flm) -> None:
    words = ("security", "backup", "create", "--output", str(tmp_path / "b"))
    code, out, screen = typed(*words, answers=[f"{PASSPHRASE}\n", f"{PASSPHRASE}x\n"])
    assert (code, json.loads(out)["error"]["code"]) == (1, "USAGE")
    assert b"differ" in out
    code, out, screen = typed(*words, answers=[f"{PASSPHRASE}\n"] * 2)
    assert code == 0, out
    assert PASSPHRASE.encode() not in screen + out
    code, out, _ = typed("security", "backup", "restore", str(tmp_path / "b"), answers=[f"{PASSPHRASE}\n"])
    assert code == 0, out


def test_ctrl_c_at_the_prompt_ends_it(tmp_path: Path) -> None:
    code, out, _ = typed("security", "backup", "create", "--output", str(tmp_path / "b"), answers=["\x03"])
    assert (code, out) == (130, b"")
    assert not (tmp_path / "b").exists()
