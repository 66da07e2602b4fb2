"""Which versions an advisory hits: by examples that are so in the world, and by properties on any range."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from tests.structure.advisories import (
    PYPA,
    RUSTSEC,
    DatabaseError,
    ask,
    osv_advisory,
    osv_affects,
    requirement_matches,
    rustsec_advisory,
    semver_key,
)
from tests.structure.locked import Package, python_packages, rust_packages

# CVE-2025-43859: h11 before 0.16.0 takes what ends a chunk for granted.
H11 = {
    "id": "PYSEC-2026-348",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "h11"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "0.16.0"}]}],
        }
    ],
}
PYO3 = """```toml
[advisory]
id = "RUSTSEC-2025-0020"
package = "pyo3"

[versions]
patched = [">= 0.24.1"]
```

# A string read beyond its end
"""


def clone(folder: Path, files: dict[str, str]) -> Path:
    """A git repository of one commit."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    by = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*by, "commit", "-q", "-m", "one", "--date", "2026-01-02T03:04:05Z"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


# --- what the databases say ---


@pytest.mark.parametrize(("version", "affected"), [("0.14.0", True), ("0.16.0rc1", True), ("0.16.0", False)])
def test_a_python_advisory_hits_what_is_before_its_fix(tmp_path: Path, version: str, affected: bool) -> None:
    database = clone(
        tmp_path, {"vulns/h11/PYSEC-2026-348.yaml": json.dumps(H11), "vulns/x/PYSEC-1-1.yaml": "broken: ["}
    )
    answer = ask(PYPA, database, {Package("h11", version), Package("another", "1")})
    assert answer.naming == 1
    assert answer.affected == ((f"PYSEC-2026-348 h11 {version}",) if affected else ())
    assert len(answer.commit) == 40


@pytest.mark.parametrize(("version", "affected"), [("0.24.0", True), ("0.24.1-beta.1", True), ("0.30.0", False)])
def test_a_rust_advisory_hits_what_is_not_patched(tmp_path: Path, version: str, affected: bool) -> None:
    database = clone(tmp_path, {"crates/pyo3/RUSTSEC-2025-0020.md": PYO3, "README.md": "about"})
    answer = ask(RUSTSEC, database, {Package("pyo3", version)})
    assert answer.affected == ((f"RUSTSEC-2025-0020 pyo3 {version}",) if affected else ())


def test_two_versions_of_a_package_are_both_asked_about(tmp_path: Path) -> None:
    database = clone(tmp_path, {"vulns/H11/PYSEC-2026-348.yaml": json.dumps(H11)})
    answer = ask(PYPA, database, {Package("h11", "0.16.0"), Package("h11", "0.15.0")})
    assert answer.affected == ("PYSEC-2026-348 h11 0.15.0",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "id: [",
        json.dumps(H11 | {"affected": None}),
        json.dumps(H11 | {"affected": []}),
        json.dumps(H11).replace("h11", "h12"),
        json.dumps(H11).replace("0.16.0", "not a version"),
        json.dumps(H11).replace("fixed", "mended"),
    ],
)
def test_a_python_advisory_that_cannot_be_understood_is_an_error(tmp_path: Path, text: str) -> None:
    database = clone(tmp_path, {"vulns/h11/PYSEC-2026-348.yaml": text})
    with pytest.raises(DatabaseError, match=r"vulns/h11/PYSEC-2026-348\.yaml"):
        ask(PYPA, database, {Package("h11", "0.16.0")})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no TOML",
        PYO3.replace("patched", "mended"),
        PYO3.replace("pyo3", "pyo4"),
        PYO3.replace(">=", "=>"),
        PYO3.replace("\n```", ""),
    ],
)
def test_a_rust_advisory_that_cannot_be_understood_is_an_error(tmp_path: Path, text: str) -> None:
    database = clone(tmp_path, {"crates/pyo3/RUSTSEC-2025-0020.md": text})
    with pytest.raises(DatabaseError, match=r"crates/pyo3/RUSTSEC-2025-0020\.md"):
        ask(RUSTSEC, database, {Package("pyo3", "0.30.0")})


def test_a_folder_that_is_no_such_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be read with git"):
        ask(PYPA, tmp_path / "nowhere", {Package("h11", "0.16.0")})
    with pytest.raises(DatabaseError, match="is it a clone of PyPA"):
        ask(PYPA, clone(tmp_path, {"crates/pyo3/RUSTSEC-2025-0020.md": PYO3}), {Package("h11", "0.16.0")})


def test_what_was_withdrawn_hits_nothing() -> None:
    assert osv_advisory("h11", json.dumps(H11 | {"withdrawn": "2026-01-01T00:00:00Z"})) is None
    assert rustsec_advisory("pyo3", PYO3.replace("\n\n[v", '\nwithdrawn = "2026-01-01"\n\n[v')) is None


def test_what_no_version_heals_hits_every_version() -> None:
    unmaintained = rustsec_advisory("pyo3", PYO3.replace('">= 0.24.1"', ""))
    assert unmaintained is not None
    assert unmaintained.affects("0.0.1")
    assert unmaintained.affects("99.0.0")
    assert osv_affects({"ranges": [{"type": "GIT", "events": []}]}, Version("1"))


# --- ranges ---

RELEASES = st.tuples(*[st.integers(0, 3)] * 3)
SEMVERS = st.builds(
    lambda parts, rest: ".".join(map(str, parts)) + rest, RELEASES, st.sampled_from(["", "-alpha", "-rc.1", "-rc.2"])
)


@given(SEMVERS, SEMVERS)
def test_comparisons_are_the_order_of_versions(version: str, bound: str) -> None:
    low, high = semver_key(version), semver_key(bound)
    said = {sign: requirement_matches(f"{sign} {bound}", version) for sign in (">=", ">", "<=", "<", "=")}
    assert said == {">=": low >= high, ">": low > high, "<=": low <= high, "<": low < high, "=": low == high}


@given(RELEASES, RELEASES)
def test_caret_keeps_the_leftmost_part_that_is_not_nought(version: tuple[int, ...], bound: tuple[int, ...]) -> None:
    kept = next((place + 1 for place, part in enumerate(bound) if part), 3)
    expected = version >= bound and version[:kept] == bound[:kept]
    text, base = (".".join(map(str, parts)) for parts in (version, bound))
    assert requirement_matches(f"^{base}", text) == requirement_matches(base, text) == expected


@given(RELEASES, RELEASES, st.integers(1, 3))
def test_parts_that_are_left_out(version: tuple[int, ...], bound: tuple[int, ...], given_parts: int) -> None:
    part = ".".join(map(str, bound[:given_parts]))
    text = ".".join(map(str, version))
    begun = version[:given_parts]
    assert requirement_matches(f"={part}", text) == (begun == bound[:given_parts])
    assert requirement_matches(f">{part}", text) == (begun > bound[:given_parts])
    assert requirement_matches(f"<={part}", text) == (begun <= bound[:given_parts])
    floor = (*bound[:given_parts], 0, 0)[:3]
    kept = min(given_parts, 2)
    assert requirement_matches(f"~{part}", text) == (version >= floor and version[:kept] == bound[:kept])


@pytest.mark.parametrize(
    ("requirement", "version", "matches"),
    [
        ("^1", "2.0.0-rc.1", False),
        ("^0.0.3", "0.0.4", False),
        ("^0.0", "0.0.9", True),
        ("^0", "0.9.9", True),
        ("*", "7.0.0-alpha", True),
        (">= 0.3.9, < 0.4.0", "0.3.10", True),
        (">= 0.3.9, < 0.4.0", "0.4.0", False),
        (">= 1.0.0-rc.2", "1.0.0-rc.10", True),
        (">= 1.0.0-rc.2", "1.0.0-beta", False),
        ("= 1.2.3", "1.2.3+built.1", True),
    ],
)
def test_requirements_as_they_occur(requirement: str, version: str, matches: bool) -> None:
    assert requirement_matches(requirement, version) == matches


@pytest.mark.parametrize("wrong", ["", "1.2.3.4", "one", ">=", "!= 1", "1.2.x", "1.2.3 || 2"])
def test_what_is_no_requirement_is_no_match_but_an_error(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no requirement"):
        requirement_matches(wrong, "1.0.0")


ALL = [Version(text) for text in ("0.1a1", "0.1", "0.2rc1", "0.2", "0.2.post1", "0.3", "1.0.dev1", "1.0", "2.0")]


@given(st.lists(st.integers(0, len(ALL) - 1), unique=True, max_size=6), st.booleans(), st.permutations(range(7)))
def test_events_are_walked_through_in_order(places: list[int], closed: bool, order: list[int]) -> None:
    """Against a walk through all versions there are. The order in which events are written does not matter."""
    events: list[dict[str, Any]] = []
    inside, expected = False, {}
    ends = "last_affected" if closed else "fixed"
    for place, version in enumerate(ALL):
        turned = place in places
        if turned:
            events.append({ends if inside else "introduced": str(version)})
        expected[version] = inside if turned and closed and inside else inside != turned
        inside = inside != turned
    shuffled = [events[place] for place in order if place < len(events)]
    entry = {"ranges": [{"type": "ECOSYSTEM", "events": shuffled}], "versions": []}
    if events:
        assert {version: osv_affects(entry, version) for version in ALL} == expected


@given(st.sampled_from(ALL), st.sampled_from(ALL))
def test_a_version_that_is_listed_is_affected_whatever_the_ranges_say(listed: Version, asked: Version) -> None:
    entry = {"versions": [str(listed)], "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "99"}]}]}
    assert osv_affects(entry, asked) == (listed == asked)


# --- locks ---


def test_what_the_locks_pin() -> None:
    lock = "a_b==1.0 \\\n    --hash=sha256:00\nnumpy==2.5.5 ; python_full_version >= '3.12' \\\n    --hash=sha256:11\n"
    assert python_packages(lock) == {Package("a-b", "1.0"), Package("numpy", "2.5.5")}
    crates = (
        '[[package]]\nname = "x"\nversion = "1.0.0"\nsource = "registry"\n[[package]]\nname = "o"\nversion = "1.0.0"'
    )
    assert rust_packages(crates) == {Package("x", "1.0.0")}


@pytest.mark.parametrize("lock", ["", "# nothing\n", "a>=1\n", "a==1 b\n", "-e .\n", "git+https://localhost/a\n"])
def test_a_lock_that_pins_nothing_or_has_other_lines_is_an_error(lock: str) -> None:
    with pytest.raises(ValueError, match="Python lock"):
        python_packages(lock)
