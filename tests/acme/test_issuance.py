"""Certificates from a real CA: one name and several, refused nonces, slow validation, profiles, and who asks again."""

from __future__ import annotations

import itertools
import json
import stat
import time
from pathlib import Path

import pytest
from cryptography import x509

from flm.tls.pair import check
from tests.acme.conftest import NewClient
from tests.acme.harness import NAME, Client, run
from tests.support import pebble
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, edited, problem

ISSUED_WITHIN = 10.0  # seconds, of the product; a second here
DAY = 86_400.0


def test_a_certificate_is_there_within_seconds(ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            began = time.monotonic()
            pair = await one.issue(email="ops@flm.example")
            took = time.monotonic() - began
            print(f"issued in {took:.2f} s")
            assert took < ISSUED_WITHIN
            check(pair, time.time(), [NAME])
            assert pair.domains == (NAME,)
            chain = x509.load_pem_x509_certificates(pair.chain_pem + ca.root().encode())
            for leaf, issuer in itertools.pairwise(chain):
                leaf.verify_directly_issued_by(issuer)
            assert [step for step, _ in one.steps if step != "warning"] == [
                "directory", "account", "names", "order", "challenge", "validation", "finalize", "download",
            ]  # fmt: skip
            assert one.tokens == {}  # nothing stays published

    run(scenario())


def test_an_answer_is_published_no_longer_than_it_is_needed(
    ca: Ca, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            open_at: dict[str, int] = {}
            monkeypatch.setattr(one, "_step", lambda step, _detail: open_at.update({step: len(one.tokens)}))
            await one.issue("one.flm.example", "two.flm.example")
            assert (open_at["order"], open_at["validation"], open_at["finalize"]) == (0, 2, 0)

    run(scenario())


def test_several_names_stand_in_one_certificate(ca: Ca, client: NewClient) -> None:
    names = [f"n{number}.flm.example" for number in range(7)]

    async def scenario() -> None:
        async with client(ca) as one:
            pair = await one.issue(*names)
            assert sorted(pair.domains) == sorted(names)
            assert len(one.challenges) == len(names)
            assert "and 2 more" in one.said("order")[0]

    run(scenario())


def test_nine_refused_nonces_of_ten_are_survived(tmp_path: Path) -> None:
    with pebble.running(tmp_path / "ca", WFE_NONCEREJECT=90) as ca:

        async def scenario() -> None:
            async with Client(tmp_path / "acme", ca.directory, ca.ca_file, ca.http_port) as one:
                await one.issue()

        run(scenario())
        assert ca.log.count("POST /") > 15  # an attempt takes some ten, if no nonce is refused
        assert ca.accounts() == 1


def test_a_ca_that_takes_its_time_and_says_so_is_waited_for(tmp_path: Path) -> None:
    with pebble.running(tmp_path / "ca", retry_after=(3, 5), VA_NOSLEEP=0, VA_SLEEPTIME=5) as ca:

        async def scenario() -> None:
            async with Client(tmp_path / "acme", ca.directory, ca.ca_file, ca.http_port) as one:
                began = time.monotonic()
                await one.issue("one.flm.example", "two.flm.example", "three.flm.example")
                took = time.monotonic() - began
                print(f"issued in {took:.2f} s by a slow CA")
                assert took < ISSUED_WITHIN

        run(scenario())


def test_authorizations_that_are_valid_are_not_asked_for_again(tmp_path: Path) -> None:
    with pebble.running(tmp_path / "ca", AUTHZREUSE=100) as ca:

        async def scenario() -> None:
            async with Client(tmp_path / "acme", ca.directory, ca.ca_file, ca.http_port) as one:
                first = await one.issue()
                asked = len(one.challenges)
                second = await one.issue(replaces=first.chain_pem.decode())
                assert second.serial != first.serial
                assert asked == 1
                assert len(one.challenges) == asked + 1  # the probe of the second attempt, and no challenge

        run(scenario())
        assert ca.accounts() == 1


def test_a_profile_that_the_ca_offers_is_taken(ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            for profile, seconds in (("shortlived", 6 * DAY), ("minutes", 300.0), ("classic", 90 * DAY)):
                pair = await one.issue(profile=profile)
                assert abs(pair.not_after - pair.not_before - seconds) <= 2

    run(scenario())


def test_a_profile_is_left_out_where_the_ca_has_none(front: Front, client: NewClient) -> None:
    front.always("directory", edited(lambda document: document["meta"].pop("profiles")))

    async def scenario() -> None:
        async with client(front) as one:
            await one.issue(profile="shortlived")
            assert one.said("profile") == ['this CA has no profiles, so acme.profile "shortlived" is left out']
            assert "profile" not in next(each for each in front.seen if each.step == "order").payload

    run(scenario())


def test_the_account_is_made_once_and_kept_private(front: Front, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(front) as one:
            await one.issue(email="ops@flm.example")
            kept = one.folder / "account.json"
            assert stat.S_IMODE(kept.stat().st_mode) == 0o600
            assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
            document = json.loads(kept.read_text())
            assert document["terms"] == "data:text/plain,Do%20what%20thou%20wilt"
            assert document["terms_agreed_at"].startswith("20")
            await one.issue(email="ops@flm.example")
            assert front.count("account") == front.count("account", 201) + front.count("account", 400) >= 1
            assert front.count("account", 201) == 1
            assert not list(one.folder.glob("pending.json"))  # the pair has arrived

    run(scenario())


def test_another_address_is_told_to_the_ca(front: Front, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(front) as one:
            await one.issue(email="ops@flm.example")
            await one.issue(email="other@flm.example")
            told = [each for each in front.seen if each.step == "contact" and each.status == 200]
            assert [each.payload for each in told] == [{"contact": ["mailto:other@flm.example"]}]
            await one.issue(email="other@flm.example")
            assert front.count("contact", 200) == 1
            assert front.count("account", 201) == 1

    run(scenario())


def test_an_account_that_the_ca_forgot_is_made_again_with_the_same_key(front: Front, client: NewClient) -> None:
    front.script("order", problem("accountDoesNotExist", "no such account", 400))

    async def scenario() -> None:
        async with client(front) as one:
            await one.issue()
            assert one.said("account")[-1] == "making the account anew, since the CA does not know it any more"
            assert front.count("account", 201) == 1  # Pebble had not forgotten it: the same key, the same account
            assert front.count("account", 200) == 1

    run(scenario())


def test_a_ca_that_lost_everything_is_told_the_same_key(tmp_path: Path) -> None:
    async def scenario(ca: Ca) -> str:
        async with Client(tmp_path / "acme", ca.directory, ca.ca_file, ca.http_port) as one:
            moved = json.loads((one.folder / "account.json").read_text()) if one.folder.exists() else None
            if moved:  # another Pebble has another port, and there the account's URL would be
                moved["url"] = moved["url"].replace(moved["url"].split("/")[2], ca.directory.split("/")[2])
                moved["directory"] = ca.directory
                (one.folder / "account.json").write_text(json.dumps(moved))
            await one.issue()
            return str(json.loads((one.folder / "account.json").read_text())["key"])

    with pebble.running(tmp_path / "first") as ca:
        key = run(scenario(ca))
    with pebble.running(tmp_path / "second") as ca:
        assert run(scenario(ca)) == key
        assert ca.accounts() == 1


def test_an_account_file_that_cannot_be_read_is_set_aside(ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            one.folder.mkdir(mode=0o700)
            (one.folder / "account.json").write_text('{"directory": "x", "key": "no key"}')
            (one.folder / "account.json").chmod(0o600)
            await one.issue()
            assert (one.folder / "account.unreadable").exists()
            told = dict(one.steps)["account"]
            assert "making an account with the CA, since account.json was damaged and is account.unreadable now" in told

    run(scenario())


@pytest.mark.parametrize(
    "changed",
    [
        {"directory": "https://ca.elsewhere.example/dir", "url": "https://ca.elsewhere.example/account/1"},
        {"url": "no address"},
    ],
)
def test_an_account_that_is_none_of_this_ca_is_asked_for_by_its_key(
    ca: Ca, client: NewClient, changed: dict[str, str]
) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            await one.issue()
            file, accounts = one.folder / "account.json", ca.accounts()
            kept = json.loads(file.read_text())
            file.write_text(json.dumps(kept | changed))
            await one.issue()
            assert json.loads(file.read_text()) | {"terms_agreed_at": ""} == kept | {"terms_agreed_at": ""}
            assert ca.accounts() == accounts

    run(scenario())


def test_no_key_stands_in_what_is_told(ca: Ca, client: NewClient) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            pair = await one.issue()
            account = json.loads((one.folder / "account.json").read_text())["key"]
            for line in (*account.splitlines(), *pair.key_pem.decode().splitlines()):
                assert "-----" in line or not any(line in detail for _, detail in one.steps)

    run(scenario())
