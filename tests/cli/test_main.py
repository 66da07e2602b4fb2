"""The frame: where options may stand, what an error looks like, exit codes, and what is loaded for what."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flm import __version__
from flm.cli import main as frame
from flm.cli.command import Context, Noun, Output
from flm.cli.main import NOUNS
from flm.cli.output import printable, table
from flm.errors import CommandCode, CommandError
from flm.services.chat import _question
from tests.cli.conftest import ROOT, Flm, process

ALL_VERBS = [
    ("config", "list"),
    ("config", "get", "proxy.port"),
    ("config", "set", "proxy.port", "4000"),
    ("api-keys", "list"),
    ("api-keys", "create", "--label", "x"),
    ("check",),
    ("proxy", "status"),
]


class TestHelp:
    @pytest.mark.parametrize("option", ["--version", "-V"])
    def test_version(self, flm: Flm, option: str) -> None:
        said = flm(option)
        assert (said.code, said.out, said.err) == (0, f"flm {__version__}\n", "")

    def test_names_every_noun(self, flm: Flm) -> None:
        said = flm("--help")
        assert said.code == 0
        assert all(f"  {noun} " in said.out for noun in NOUNS)

    @pytest.mark.parametrize("noun", list(NOUNS))
    def test_of_every_noun(self, flm: Flm, noun: str) -> None:
        said = flm(noun, "--help")
        assert said.code == 0
        assert said.out.startswith(f"usage: flm {noun}")
        assert said.err == ""

    def test_of_a_verb(self, flm: Flm) -> None:
        assert "--label" in flm("api-keys", "create", "-h").out

    def test_as_a_module(self) -> None:
        child = process("--version")
        assert child.communicate(timeout=30) == (f"flm {__version__}\n".encode(), b"")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("proxy", "start", "--prot", "80"), "unrecognized arguments: --prot …\ndid you mean --port?"),
            (("proxy", "stop", "--nwo"), "unrecognized arguments: --nwo\ndid you mean --now?"),
            (("proxy", "stop", "--xyzzy=1"), "unrecognized arguments: --xyzzy=…"),
            (("security", "backup", "create", "--output", "f", "--pasphrase-file", "p"),
             "unrecognized arguments: --pasphrase-file …\ndid you mean --passphrase-file?"),
        ],
    )  # fmt: skip
    def test_an_option_that_there_is_not(self, flm: Flm, arguments: tuple[str, ...], message: str) -> None:
        said = flm(*arguments)
        assert said.error == ("USAGE", message)
        words = " ".join(arguments[: 3 if arguments[0] == "security" else 2])
        assert said.err.startswith(f"usage: flm {words} "), "the verb's own usage"

    @pytest.mark.parametrize("name", ["config", "security"])
    def test_a_folder_in_the_place_of_a_database(self, flm: Flm, tmp_path: Path, name: str) -> None:
        said = flm(f"--db-path-{name}", str(tmp_path), "check")
        assert said.error == (
            "USAGE",
            f"--db-path-{name} {tmp_path} is a folder, and takes the database itself, such as {tmp_path}/{name}.db",
        )

    @pytest.mark.parametrize("arguments", [("proxy", "status"), ("proxy", "stop"), ("proxy", "reload"), ("check",)])
    def test_what_cannot_be_seen_is_not_called_empty(self, flm: Flm, home: Path, arguments: tuple[str, ...]) -> None:
        home.write_text("a file")
        said = flm(*arguments)
        assert said.code == 2
        assert said.error[0] == "IO_ERROR"
        assert "Not a directory" in said.error[1]

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("--format", "json"),
            ("--format",),
            ("nonsense",),
            ("--nonsense",),
            ("--form", "json", "config", "list"),
            ("config",),
            ("config", "nonsense"),
            ("config", "get"),
            ("config", "get", "a", "b"),
            ("config", "set", "proxy.port"),
            ("config", "list", "--nonsense"),
            ("config", "list", "--format", "yaml"),
            ("--format", "yaml", "config", "list"),
            ("api-keys", "create"),
            ("api-keys", "create", "--label"),
            ("api-keys", "create", "--label=--"),
            ("api-keys", "create", "label"),
            ("api-keys", "revoke"),
            ("engines", "add", "--id", "a"),
            ("engines", "add", "--id", "a", "--kind", "openai", "--url", "http://x", "--connect-timeout", "soon"),
            (
                "engines",
                "add",
                "--id",
                "a",
                "--kind",
                "openai",
                "--url",
                "u",
                "--api-key-env",
                "A",
                "--api-key-file",
                "F",
            ),
            ("engines", "add", "--id", "a", "--kind", "openai", "--url", "u", "--api-key-env", "NOT_SET_ANYWHERE"),
            ("engines", "add", "--id", "a", "--kind", "openai", "--url", "u", "--api-key", "secret"),
            ("engines", "remove"),
            ("chat",),
            ("check", "everything"),
            ("proxy", "stop", "--port", "x"),
        ],
    )
    def test_wrong(self, flm: Flm, home: Path, arguments: tuple[str, ...]) -> None:
        said = flm(*arguments)
        assert said.code == 1
        code, message = said.error
        assert code == "USAGE"
        assert message
        assert said.err.startswith(("usage: flm", "flm engines add"))
        assert not home.exists()

    def test_wrong_as_text(self, flm: Flm) -> None:
        for arguments in (("--format", "text", "config"), ("config", "--format=text")):
            said = flm(*arguments)
            assert said.code == 1
            assert said.out.startswith("USAGE: ")

    def test_arguments_that_are_no_text(self, flm: Flm) -> None:
        assert flm("\udcff").error[0] == "USAGE"
        assert flm("config", "get", "\udcff").error[0] == "CONFIG_INVALID"
        assert flm("api-keys", "revoke", "\udcff").error[0] == "KEY_NOT_FOUND"


class TestOptionsAnywhere:
    @pytest.mark.parametrize("position", [0, 1, 2])
    @pytest.mark.parametrize("spelling", [("--format", "text"), ("--format=text",)])
    def test_format(self, flm: Flm, position: int, spelling: tuple[str, ...]) -> None:
        arguments = ["config", "list"]
        arguments[position:position] = spelling
        said = flm(*arguments)
        assert said.code == 0
        assert said.out.startswith("KEY")

    def test_the_last_one_holds(self, flm: Flm) -> None:
        assert flm("--format", "text", "config", "list", "--format", "json").data
        assert flm("--format", "json", "config", "--format", "text", "list").out.startswith("KEY")

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_databases(self, flm: Flm, tmp_path: Path, home: Path, position: int) -> None:
        arguments = ["api-keys", "list"]
        arguments[position:position] = [
            "--db-path-config", str(tmp_path / "c.db"), f"--db-path-security={tmp_path / 's.db'}"
        ]  # fmt: skip
        assert flm(*arguments).data == []
        assert (tmp_path / "c.db").exists()
        assert (tmp_path / "s.db").exists()
        assert not (home / "config.db").exists()

    def test_a_value_is_not_taken_for_the_noun(self, flm: Flm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert flm("--db-path-config", "config", "--db-path-security", "engines", "api-keys", "list").data == []
        assert (tmp_path / "config").exists()


class TestErrors:
    @pytest.mark.parametrize(
        ("raised", "code", "exit_code"),
        [
            (CommandError(CommandCode.KEY_NOT_FOUND, "no such key"), "KEY_NOT_FOUND", 1),
            (CommandError(CommandCode.DB_ERROR, "broken"), "DB_ERROR", 2),
            (PermissionError(13, "Permission denied", "/x"), "IO_ERROR", 2),
            (ZeroDivisionError("secret of a bug"), "INTERNAL_ERROR", 2),
        ],
    )
    def test_each_kind(
        self, flm: Flm, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str, exit_code: int
    ) -> None:
        async def fail(*_: object) -> Output:
            raise raised

        monkeypatch.setattr("flm.cli.config._list", fail)
        said = flm("config", "list")
        assert said.error[0] == code
        assert said.code == exit_code
        assert "secret of a bug" not in said.out
        text = flm("--format", "text", "config", "list")
        assert text.code == exit_code
        assert text.out.startswith(f"{code}: ")
        assert text.out.count("\n") == 1

    def test_ctrl_c(self, flm: Flm, monkeypatch: pytest.MonkeyPatch) -> None:
        async def interrupted(*_: object) -> Output:
            raise KeyboardInterrupt

        monkeypatch.setattr("flm.cli.config._list", interrupted)
        said = flm("config", "list")
        assert (said.code, said.out) == (130, "")

    def test_nobody_reads(self) -> None:
        """`flm config list | head -1`: no traceback, and not exit code 0."""
        child = process("config", "list")
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        complaints = child.stderr.read()
        child.stderr.close()
        assert child.wait(30) == 141
        assert complaints == b""

    def test_a_full_disk_under_stdout(self) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full on this system")
        with open("/dev/full", "wb") as full:
            child = process("config", "list", stdout=full)
            _, complaints = child.communicate(timeout=30)
        assert child.returncode == 2
        assert b"Traceback" not in complaints

    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
    def test_closed_streams(self, closed: str) -> None:
        """As with /dev/null: cron jobs and scripts close what they do not read."""
        child = subprocess.run(
            ["sh", "-c", f'exec "$0" -m flm api-keys create --label x {closed}', sys.executable],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (child.returncode, child.stderr) == (0, b"")
        assert (child.stdout == b"") == closed.startswith(">&-")


class TestBytesThatAreNoText:
    def test_in_a_prompt(self) -> None:
        with pytest.raises(CommandError) as caught:
            _question("m", "\udcff", stream=False)
        assert caught.value.code is CommandCode.USAGE

    def test_on_standard_input(self, flm: Flm, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
        said = flm("chat", "--model", "m", "--prompt", "-")
        assert (said.code, said.error[0]) == (1, "USAGE")

    def test_in_a_file_for_a_key(self, flm: Flm, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_bytes(b"\xff\xfe")
        said = flm(
            "engines",
            "add",
            "--id",
            "e",
            "--kind",
            "openai",
            "--url",
            "http://127.0.0.1:1",
            "--api-key-file",
            str(file),
        )
        assert (said.code, said.error[0]) == (1, "USAGE")
        assert "\\xff" not in said.out + said.err


class TestLoading:
    def loaded(self, *arguments: str) -> set[str]:
        code = (
            "import sys\nfrom flm.cli.main import main\n"
            f"code = main({list(arguments)!r})\nsys.stderr.write(' '.join(sys.modules))\nraise SystemExit(code)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, timeout=60)
        return set(done.stderr.decode().split())

    def test_version_needs_next_to_nothing(self) -> None:
        loaded = self.loaded("--version")
        assert not loaded & {"asyncio", "argparse", "msgspec", "sqlite3", "flm.services", "flm.errors"}

    def test_help_loads_no_noun(self) -> None:
        loaded = self.loaded("--help")
        assert not {name for name in loaded if name.startswith(("flm.services", "flm.store"))}
        assert not loaded & {"asyncio", "sqlite3", *(module for module, _ in NOUNS.values())}

    def test_a_command_loads_its_own_noun_only(self) -> None:
        loaded = self.loaded("config", "list")
        others = {module for noun, (module, _) in NOUNS.items() if noun != "config"}
        assert not loaded & others
        assert not loaded & {"flm.engines.registry", "flm.upstream.pool", "flm.runtime.control", "uvloop", "granian"}

    def test_the_services_are_loaded_one_by_one(self) -> None:
        code = "import sys, flm.services; print(*(name for name in sys.modules if name.startswith('flm.')))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, timeout=60)
        assert done.stdout.decode().split() == ["flm.services"]


def test_every_noun_is_registered_with_handlers() -> None:
    from importlib import import_module

    for name, (module, meaning) in NOUNS.items():
        noun = Noun(name, meaning)
        import_module(module).register(noun)
        assert noun.parser.format_help()


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (("models",), "list   the models of all engines that serve"),
        (("engines",), "remove  unregister one"),
        (("proxy",), "status   what runs"),
        (("security",), "backup        an encrypted copy"),
        (("models", "alias"), "remove  forget a name"),
    ],
)
def test_without_a_verb_each_is_listed_with_its_meaning(flm: Flm, words: tuple[str, ...], verb: str) -> None:
    said = flm(*words)
    assert (said.code, said.error[0]) == (1, "USAGE")
    question, *lines = said.error[1].splitlines()
    assert question == "which verb?"
    assert any(line.startswith(f"  {verb}") for line in lines), lines


@pytest.mark.parametrize("arguments", ALL_VERBS, ids=" ".join)
def test_every_quick_verb_speaks_json_and_text(flm: Flm, arguments: tuple[str, ...]) -> None:
    assert flm(*arguments).data is not None
    said = flm(*arguments, "--format", "text")
    assert said.code == 0
    assert said.out
    assert not said.out.startswith("{")


class TestText:
    def test_columns_are_aligned(self) -> None:
        rows = [{"id": "a", "long_name": 1.5, "x": None}, {"id": "longer", "long_name": True, "x": ["p", "q"]}]
        assert table(rows, ("id", "long_name", "x")).splitlines() == [
            "ID      LONG NAME  X",
            "a       1.5        -",
            "longer  true       p, q",
        ]

    def test_no_rows(self) -> None:
        assert table([], ("id",)) == "(none)"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain é 鍵 🦊\n\t", "plain é 鍵 🦊\n\t"),
            ("\x1b[2J\x07", "\\x1b[2J\\x07"),
            ("\u202egnp", "\\u202egnp"),
            ("a\rb", "a\\rb"),
        ],
    )
    def test_nothing_steers_the_terminal(self, text: str, shown: str) -> None:
        assert printable(text) == shown

    def test_json_keeps_every_character(self, flm: Flm) -> None:
        assert flm("api-keys", "create", "--label", "鍵 é 🦊").data["label"] == "鍵 é 🦊"
        assert "鍵 é 🦊" in flm("api-keys", "list").out


def test_interrupt_ends_a_process_with_130(tmp_path: Path) -> None:
    """While it waits for standard input."""
    child = process("chat", "--model", "m", "--prompt", "-", stdin=subprocess.PIPE)
    try:
        assert child.stdin is not None
        waiting = Path(f"/proc/{child.pid}/wchan")
        if not waiting.exists():
            pytest.skip("needs /proc to see that it waits")
        syscall = Path(f"/proc/{child.pid}/syscall")
        for _ in range(3000):
            if syscall.read_text().startswith("0 0x0 "):  # read(0, …) on x86-64
                break
            signal.sigtimedwait([], 0.01)
        else:
            pytest.skip("cannot see here that it waits")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (130, b"", b"")
    finally:
        child.kill()
        child.wait()


def test_a_context_finds_the_folder_once(home: Path) -> None:
    context = Context(None, None, None)
    assert context.folder is context.folder
    assert context.folder.root == home
    assert frame.EXIT_INTERRUPTED == 130
