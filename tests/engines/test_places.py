"""Where programs and settings of each kind lie on Linux, macOS and Windows: pure functions, tried for all three."""

from __future__ import annotations

import ntpath
import posixpath
from pathlib import Path

import pytest

from flm.engines.registry import DIALECTS

HOMES = {"linux": "/home/a", "darwin": "/Users/a", "win32": "C:\\Users\\a"}
LOCAL = "C:\\Users\\a\\AppData\\Local"
ENVIRONMENTS = {
    "linux": {"PATH": "/opt/x/bin:/usr/bin:relative:"},
    "darwin": {"PATH": "/opt/homebrew/bin:/usr/bin"},
    "win32": {"PATH": '"C:\\bin";x', "LOCALAPPDATA": LOCAL, "ProgramFiles": "D:\\Programs"},
}
SYSTEMS = list(HOMES)


def binaries(kind: str, system: str) -> tuple[str, ...]:
    return DIALECTS[kind].binaries(system, ENVIRONMENTS[system], HOMES[system])


def settings(kind: str, system: str) -> tuple[str, ...]:
    return DIALECTS[kind].settings(system, ENVIRONMENTS[system], HOMES[system])


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("kind", DIALECTS)
def test_paths_are_absolute_few_and_of_that_system(kind: str, system: str) -> None:
    path = ntpath if system == "win32" else posixpath
    for found in (binaries(kind, system), settings(kind, system)):
        assert len(found) <= 24
        assert len(set(found)) == len(found)
        for each in found:
            assert path.isabs(each)
            assert ("\\" in each) == (system == "win32"), each
            assert "*" not in path.dirname(each)
            assert not each.startswith(("/relative", "x\\"))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("kind", DIALECTS)
def test_nothing_depends_on_this_machine(kind: str, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect = DIALECTS[kind]
    arguments = (system, ENVIRONMENTS[system], HOMES[system])
    before = dialect.binaries(*arguments), dialect.settings(*arguments)
    for name in ("HOME", "PATH", "OLLAMA_HOST", "LOCALAPPDATA", "XDG_CONFIG_HOME", "LLAMA_ARG_PORT"):
        monkeypatch.setenv(name, "/elsewhere")
    assert (dialect.binaries(*arguments), dialect.settings(*arguments)) == before
    assert all(str(Path.home()) not in each for found in before for each in found)


@pytest.mark.parametrize("system", [*SYSTEMS, "freebsd14", ""])
@pytest.mark.parametrize("kind", DIALECTS)
def test_an_empty_environment_and_an_unknown_system_are_no_trouble(kind: str, system: str) -> None:
    for home in ("", "/", "relative"):
        for found in (DIALECTS[kind].binaries(system, {}, home), DIALECTS[kind].settings(system, {}, home)):
            assert isinstance(found, tuple)


BINARIES = [
    ("ollama", "linux", ["/opt/x/bin/ollama", "/usr/local/bin/ollama", "/usr/bin/ollama", "/bin/ollama"]),
    (
        "ollama",
        "darwin",
        ["/opt/homebrew/bin/ollama", "/usr/local/bin/ollama", "/Applications/Ollama.app/Contents/Resources/ollama"],
    ),
    ("ollama", "win32", ["C:\\bin\\ollama.exe", f"{LOCAL}\\Programs\\Ollama\\ollama.exe"]),
    (
        "llamacpp",
        "linux",
        ["/opt/x/bin/llama-server", "/usr/local/bin/llama-server", "/home/a/.nix-profile/bin/llama-server"],
    ),
    ("llamacpp", "darwin", ["/opt/homebrew/bin/llama-server", "/opt/local/bin/llama-server"]),
    ("llamacpp", "win32", ["C:\\bin\\llama-server.exe", f"{LOCAL}\\Microsoft\\WinGet\\Links\\llama-server.exe"]),
    (
        "lmstudio",
        "linux",
        [
            "/home/a/.lmstudio/bin/lms",
            "/home/a/.cache/lm-studio/bin/lms",
            "/opt/LM Studio/lm-studio",
            "/usr/bin/lm-studio",
            "/home/a/Applications/LM*Studio*.AppImage",
            "/home/a/Downloads/LM*Studio*.AppImage",
        ],
    ),
    (
        "lmstudio",
        "darwin",
        [
            "/Users/a/.lmstudio/bin/lms",
            "/Applications/LM Studio.app/Contents/MacOS/LM Studio",
            "/Users/a/Applications/LM Studio.app/Contents/MacOS/LM Studio",
        ],
    ),
    (
        "lmstudio",
        "win32",
        [
            "C:\\Users\\a\\.lmstudio\\bin\\lms.exe",
            "C:\\Users\\a\\.cache\\lm-studio\\bin\\lms.exe",
            f"{LOCAL}\\Programs\\LM Studio\\LM Studio.exe",
            "D:\\Programs\\LM Studio\\LM Studio.exe",
        ],
    ),
    ("vllm", "linux", ["/opt/x/bin/vllm"]),
    ("vllm", "darwin", ["/opt/homebrew/bin/vllm"]),
]


@pytest.mark.parametrize(("kind", "system", "expected"), BINARIES)
def test_programs(kind: str, system: str, expected: list[str]) -> None:
    assert set(expected) <= set(binaries(kind, system))


def test_path_comes_first() -> None:
    assert binaries("ollama", "linux")[:2] == ("/opt/x/bin/ollama", "/usr/bin/ollama")
    assert DIALECTS["ollama"].binaries("win32", {}, "") == ()


def test_the_name_lms_on_path_counts_only_in_lm_studios_own_folders() -> None:
    environment = {"PATH": "/usr/bin:/home/b/.lmstudio/bin"}
    found = DIALECTS["lmstudio"].binaries("linux", environment, "/home/a")
    assert "/usr/bin/lms" not in found
    assert "/home/b/.lmstudio/bin/lms" in found


def test_windows_without_its_variables() -> None:
    for kind in ("ollama", "lmstudio"):
        found = DIALECTS[kind].binaries("win32", {}, "C:\\Users\\a")
        assert any(each.startswith(LOCAL) for each in found), kind


# --- settings of LM Studio --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (
            "linux",
            (
                "/home/a/.lmstudio-home-pointer",
                "/home/a/.cache/lm-studio/.internal/http-server-config.json",
                "/home/a/.lmstudio/.internal/http-server-config.json",
            ),
        ),
        (
            "darwin",
            (
                "/Users/a/.lmstudio-home-pointer",
                "/Users/a/.cache/lm-studio/.internal/http-server-config.json",
                "/Users/a/.lmstudio/.internal/http-server-config.json",
            ),
        ),
        (
            "win32",
            (
                "C:\\Users\\a\\.lmstudio-home-pointer",
                "C:\\Users\\a\\.cache\\lm-studio\\.internal\\http-server-config.json",
                "C:\\Users\\a\\.lmstudio\\.internal\\http-server-config.json",
            ),
        ),
    ],
)
def test_where_lm_studio_keeps_its_port(system: str, expected: tuple[str, ...]) -> None:
    assert settings("lmstudio", system) == expected


@pytest.mark.parametrize(
    ("pointer", "content", "expected"),
    [
        ("/home/a/", b"/data/lm\n", ("/data/lm/.internal/http-server-config.json",)),
        ("/home/a/", b"/data/lm/", ("/data/lm/.internal/http-server-config.json",)),
        ("/home/a/", "/data/東京".encode(), ("/data/東京/.internal/http-server-config.json",)),
        ("/home/a/", b"/home/a/.lmstudio", ()),  # read already
        ("/home/a/", b"relative", ()),
        ("/home/a/", b"C:\\lm", ()),
        ("/home/a/", b"", ()),
        ("/home/a/", b"/a\0b", ()),
        ("/home/a/", b"/a\nb", ()),
        ("/home/a/", b"/" + b"a" * 5000, ()),
        ("C:\\Users\\a\\", b"D:\\lm \r\n", ("D:\\lm\\.internal\\http-server-config.json",)),
        ("C:\\Users\\a\\", b"/lm", ()),
    ],
)
def test_its_pointer_is_followed(pointer: str, content: bytes, expected: tuple[str, ...]) -> None:
    files = {
        f"{pointer}.lmstudio-home-pointer": content,
        "/home/a/.lmstudio/.internal/http-server-config.json": b"{}",
    }
    assert DIALECTS["lmstudio"].further_settings(files) == expected


CONFIG = "/home/a/.lmstudio/.internal/http-server-config.json"
DEFAULT = "http://127.0.0.1:1234"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'{"autoStartOnLaunch":true,"port":8181,"cors":false,"networkInterface":"127.0.0.1"}',
            ["http://127.0.0.1:8181"],
        ),
        (b'{"port":8181,"networkInterface":"0.0.0.0"}', ["http://127.0.0.1:8181"]),
        (b'{"port":8181,"networkInterface":"192.168.1.5"}', ["http://192.168.1.5:8181"]),
        (b'{"port":8181,"networkInterface":"::"}', ["http://[::1]:8181"]),
        (b'{"port":8181,"networkInterface":"a b"}', ["http://127.0.0.1:8181"]),
        (b'{"port":1234}', []),
        (b"{}", []),
        (b'{"port":0}', []),
        (b'{"port":65536}', []),
        (b'{"port":"8181"}', []),
        (b'{"port":8181.5}', []),
        (b'{"port":null}', []),
        (b"[" * 60_000, []),
        (b"\xff\xfe", []),
        (b"", []),
    ],
)
def test_its_port(content: bytes, expected: list[str]) -> None:
    found = DIALECTS["lmstudio"].addresses({"OLLAMA_HOST": "box"}, {CONFIG: content})
    assert found == (*expected, DEFAULT)


def test_its_ports_in_several_homes() -> None:
    files = {
        "/home/a/.lmstudio-home-pointer": b'{"port":1}',
        "/home/a/.cache/lm-studio/.internal/http-server-config.json": b'{"port":5001}',
        CONFIG: b'{"port":5002}',
    }
    assert DIALECTS["lmstudio"].addresses({}, files) == ("http://127.0.0.1:5001", "http://127.0.0.1:5002", DEFAULT)


# --- settings of Ollama -----------------------------------------------------------------------------------------------

OLLAMA = "http://127.0.0.1:11434"


def test_where_ollamas_service_is_set_up() -> None:
    found = settings("ollama", "linux")
    for path in (
        "/etc/systemd/system/ollama.service.d/*.conf",
        "/etc/systemd/system/ollama.service",
        "/usr/lib/systemd/system/ollama.service",
        "/home/a/.config/systemd/user/ollama.service",
        "/etc/default/ollama",
    ):
        assert path in found
    assert "/x/systemd/user/ollama.service" in DIALECTS["ollama"].settings(
        "linux", {"XDG_CONFIG_HOME": "/x"}, "/home/a"
    )
    assert "/Users/a/Library/LaunchAgents/homebrew.mxcl.ollama.plist" in settings("ollama", "darwin")
    assert settings("ollama", "win32") == ()


UNIT = "/etc/systemd/system/ollama.service.d/override.conf"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[Service]\nEnvironment="OLLAMA_HOST=0.0.0.0:5001"\n', ["http://127.0.0.1:5001"]),
        ("[Service]\nEnvironment='OLLAMA_HOST=10.0.0.5:5001'\n", ["http://10.0.0.5:5001"]),
        ("[Service]\nEnvironment=OLLAMA_HOST=:5001\n", ["http://127.0.0.1:5001"]),
        ('[Service]\nEnvironment=OLLAMA_HOST="box:5001"\n', ["http://box:5001"]),
        ('[Service]\n  Environment = "A=b c" "OLLAMA_HOST=box:5001" OLLAMA_MODELS=/x\n', ["http://box:5001"]),
        ('[Service]\nEnvironment="A=b" \\\n  "OLLAMA_HOST=box:5001"\n', ["http://box:5001"]),
        ('[Service]\r\nEnvironment="OLLAMA_HOST=box:5001"\r\n', ["http://box:5001"]),
        ('Environment="OLLAMA_HOST=box:1"\nEnvironment="OLLAMA_HOST=box:2"\n', ["http://box:2"]),
        ('#Environment="OLLAMA_HOST=box:5001"\n', []),
        ('Environment="MY_OLLAMA_HOST=box:5001"\n', []),
        ('Environment="OLLAMA_HOST="\n', []),
        ('Environment="OLLAMA_HOST=ollama.com"\n', []),
        ("ExecStart=/usr/bin/env OLLAMA_HOST=box:5001 ollama serve\n", []),
        ("Environment\n", []),
    ],
)
def test_what_a_unit_sets(content: str, expected: list[str]) -> None:
    assert DIALECTS["ollama"].addresses({}, {UNIT: content.encode()}) == (*expected, OLLAMA)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("OLLAMA_HOST=0.0.0.0:5001\n", ["http://127.0.0.1:5001"]),
        ('export OLLAMA_HOST="box:5001" # here\n', ["http://box:5001"]),
        ("  OLLAMA_HOST='box:5001'\n", ["http://box:5001"]),
        ("# OLLAMA_HOST=box:5001\n", []),
        ("OLLAMA_HOSTS=box\n", []),
    ],
)
def test_what_an_environment_file_sets(content: str, expected: list[str]) -> None:
    assert DIALECTS["ollama"].addresses({}, {"/etc/default/ollama": content.encode()}) == (*expected, OLLAMA)


def test_what_a_launch_agent_sets() -> None:
    plist = (
        "<dict><key>EnvironmentVariables</key><dict><key>OLLAMA_HOST</key>\n<string>0.0.0.0:5001</string></dict></dict>"
    )
    files = {"/Users/a/Library/LaunchAgents/homebrew.mxcl.ollama.plist": plist.encode()}
    assert DIALECTS["ollama"].addresses({}, files) == ("http://127.0.0.1:5001", OLLAMA)


def test_the_variable_comes_first_and_everything_once() -> None:
    files = {UNIT: b'Environment="OLLAMA_HOST=box:2"\n', "/etc/default/ollama": b"OLLAMA_HOST=box:1"}
    found = DIALECTS["ollama"].addresses({"OLLAMA_HOST": "box:1"}, files)
    assert found == ("http://box:1", "http://box:2", OLLAMA)


def test_addresses_from_files_are_bounded() -> None:
    files = {
        f"/etc/systemd/system/ollama.service.d/{n}.conf": f"Environment=OLLAMA_HOST=:{5000 + n}".encode()
        for n in range(40)
    }
    found = DIALECTS["ollama"].addresses({}, files)
    assert len(found) == 8
    assert found[-1] == OLLAMA
