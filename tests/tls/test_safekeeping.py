"""Which names a backup may have of the folder of certificates: what FLM writes there, and none that leads out."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.disk.private import write_atomically
from flm.tls import safekeeping
from flm.tls.files import folder_of
from flm.tls.safekeeping import belongs, found

PARTS = st.sampled_from(
    ["acme", "..", ".", "", "root.pem", "account.json", "current.pem", "ca-0123456789ab", "/", "\n"]
)


@given(st.text(max_size=300), st.sampled_from(["account.json", "current.pem"]))
def test_what_flm_writes_of_any_authority_belongs(text: str, file: str) -> None:
    assert belongs(f"acme/{folder_of(f'https://{text}/dir')}/{file}")


@given(st.lists(PARTS, max_size=5).map("/".join) | st.text())
def test_no_name_leads_out(name: str) -> None:
    if belongs(name):
        assert ".." not in PurePosixPath(name).parts
        assert str(PurePosixPath(name)) == name
        assert name == "root.pem" or name.startswith("acme/")


@pytest.mark.parametrize(
    "name",
    ["", "local.pem", "local-root.crt", "root.replaced-1.pem", "root.pem\n", "Root.pem", "acme/x/account.json",
     "acme/ca-0123456789ab/pending.json", "acme/.ca-0123456789ab/account.json", "acme/../root.pem",
     "acme/ca-0123456789ab/account.json/x", f"acme/{'x' * 101}-0123456789ab/account.json"],
)  # fmt: skip
def test_others_do_not(name: str) -> None:
    assert not belongs(name)


def test_of_very_many_the_first_are_found(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == ()
    names = [f"acme/{folder_of(f'https://{number}.example/')}/account.json" for number in range(150)]
    for name in (*names, "root.pem", "acme/other/account.json"):
        write_atomically(tmp_path / name, b"x")
    assert found(tmp_path) == ("root.pem", *sorted(names))[: safekeeping.MOST]
