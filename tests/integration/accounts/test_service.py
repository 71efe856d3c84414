"""UsageService: who may give, move and see what, and what it says."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from integration.router.kit import backend, infer, mesh
from integration.tenancy.kit import Admin, Town, refused, town
from integration.tenancy.test_commands import of
from sqlalchemy import insert

from aiflow.admin.v1 import usage_pb2 as pb
from aiflow.admin.v1 import usage_pb2_grpc
from aiflow_router.accounts.account import MICRO
from aiflow_router.accounts.statement import audited
from aiflow_router.accounts.usage import SUMS, Usage
from aiflow_router.storage.tables.usage import USAGE

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONFIG = """discovery:
  static: [{backend: b, address: '%s', protocol: oip, models: [m]}]
routes:
  - match: {model: m}
    price: 2
"""


class Accountant:
    """UsageService as whoever has the key of `admin` calls it."""

    def __init__(self, channel: grpc.aio.Channel, admin: Admin) -> None:
        self._stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
        self._metadata = [("x-api-key", admin.key)] if admin.key else []
        self._channel: Any = channel

    def __getattr__(self, method: str) -> Any:
        async def call(**fields: Any) -> Any:
            request = getattr(pb, f"{method}Request")(**fields)
            return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=20)

        return call

    async def export(self, **fields: Any) -> str:
        request = pb.ExportUsageRequest(filter=pb.UsageFilter(**fields))
        parts = self._stub.ExportUsage(request, metadata=self._metadata, timeout=20)
        return "".join([part.csv async for part in parts])

    async def days(self) -> list[str]:
        """Of each message that an export is sent in."""
        request = pb.ExportUsageRequest(filter=pb.UsageFilter(from_day="2000-01-01"))
        parts = self._stub.ExportUsage(request, metadata=self._metadata, timeout=20)
        return [part.day async for part in parts]

    async def infer(self) -> None:
        await self._channel.unary_unary(INFER)(infer("m"), metadata=self._metadata, timeout=20)

    async def has(self, tenant: str = "acme") -> dict[str, float]:
        """In credits."""
        found = await self.Balances(tenant=tenant)
        return {one.account: one.micro_credits / MICRO for one in found.balances}


@dataclass
class House:
    """A platform with acme: a boss, Dana who has department ml, and in it Ann; and a rival."""

    town: Town
    root: Accountant
    boss: Accountant
    dana: Accountant
    ann: Accountant
    rival: Accountant
    ann_key: str

    async def give(self, amount: int, reference: str = "r", tenant: str = "acme") -> Any:
        return await self.root.TopUp(
            tenant=tenant, micro_credits=amount * MICRO, reference=reference, note="order"
        )

    async def written(self) -> None:
        """What was used is in the database."""
        router = self.town.mesh.router
        router.front._journal.settle()
        usage = router.front._journal.also.__self__  # type: ignore[union-attr]
        assert isinstance(usage, Usage)
        while usage.unwritten:
            await usage.write()


@asynccontextmanager
async def house(folder: Path, url: str = "") -> AsyncIterator[House]:
    async with backend() as server, town(folder, CONFIG % server.address, url) as t:
        boss = await t.tenant("acme")
        rival = await t.tenant("rival")
        await boss.CreateDepartment(department="ml")
        await boss.CreateDepartment(department="art")
        dana = await t.member("acme", "dana", department="ml", role="department_admin")
        ann = await t.member("acme", "ann", department="ml")
        await t.member("acme", "art", department="art")
        channel = t.mesh.channel
        yield House(
            town=t,
            ann_key=ann.key,
            **{
                name: Accountant(channel, admin)
                for name, admin in (
                    *(("root", t.root), ("boss", boss), ("dana", dana)),
                    *(("ann", ann), ("rival", rival)),
                )
            },
        )


def move(amount: float, source: str, target: str, reference: str) -> dict[str, Any]:
    return {
        "micro_credits": round(amount * MICRO),
        "source": source,
        "target": target,
        "reference": reference,
    }


async def test_credits_go_from_the_platform_down_to_members(
    storage_url: str, tmp_path: Path
) -> None:
    async with house(tmp_path, storage_url) as found:
        given = await found.give(100)
        assert (given.balance.account, given.balance.micro_credits) == ("pool:acme", 100 * MICRO)
        assert (await found.give(100)).again
        moved = await found.boss.Allocate(**move(40, "", "department:ml", "1"))
        assert moved.target.account == "department:acme/ml"
        await found.dana.Allocate(tenant="acme", **move(10, "department:ml", "member:ann", "2"))
        await found.dana.Allocate(tenant="acme", **move(1, "member:ann", "department:ml", "3"))
        assert await found.boss.has() == {
            "department:acme/ml": 31,
            "member:acme/ann": 9,
            "pool:acme": 60,
            "held:acme": 0,
            "spent:acme": 0,
        }
        assert await found.dana.has() == {"department:acme/ml": 31, "member:acme/ann": 9}
        assert await found.ann.has() == {"member:acme/ann": 9}
        await found.ann.infer()
        assert await found.ann.has() == {"member:acme/ann": 7}
        told = (await found.boss.ListTransfers(page_size=3)).transfers
        assert [one.kind for one in told] == ["settle", "hold", "allocate"]
        assert {entry.account: entry.micro_credits for entry in told[0].entries} == {
            "held:acme": -2 * MICRO,
            "spent:acme": 2 * MICRO,
        }
        assert told[2].actor.startswith("acme/dana (aif_")
        engine = found.town.mesh.router.engine
        assert engine is not None
        assert (await audited(engine)).imbalance == 0


async def test_pages_follow_one_another(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        for number in range(5):
            await found.give(1, reference=str(number))
        numbers: list[int] = []
        token = ""
        while True:
            page = await found.boss.ListTransfers(page_size=2, page_token=token)
            numbers += [one.number for one in page.transfers]
            token = page.next_page_token
            if not token:
                break
        assert numbers == [5, 4, 3, 2, 1]
        error = await refused(found.boss.ListTransfers(page_token="none"))
        assert "page_token" in error.violations


async def test_nobody_reaches_beyond_their_role(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await found.give(100)
        await found.boss.Allocate(**move(40, "", "department:ml", "1"))
        calls = {
            "a tenant admin makes no credits": found.boss.TopUp(
                tenant="acme", micro_credits=1, reference="x"
            ),
            "a department admin leaves the pool alone": found.dana.Allocate(
                **move(1, "pool", "department:ml", "2")
            ),
            "and other departments": found.dana.Allocate(
                **move(1, "department:ml", "department:art", "3")
            ),
            "and their members": found.dana.Allocate(**move(1, "department:ml", "member:art", "4")),
            "a member moves nothing": found.ann.Allocate(**move(1, "pool", "member:ann", "5")),
            "a rival moves nothing": found.rival.Allocate(
                tenant="acme", **move(1, "pool", "member:ann", "6")
            ),
            "a rival sees no balance": found.rival.Balances(tenant="acme"),
            "no transfer": found.rival.ListTransfers(tenant="acme"),
            "no alert": found.rival.ListAlerts(tenant="acme"),
            "no usage": found.rival.ListUsage(filter=pb.UsageFilter(tenant="acme")),
            "not as CSV either": found.rival.export(tenant="acme"),
            "nor of all": found.rival.export(tenant="acme", member="ann"),
            "a member sees no colleague": found.ann.ListUsage(filter=pb.UsageFilter(member="dana")),
            "a department no other": found.dana.export(department="art"),
        }
        for what, call in calls.items():
            error = await refused(call)
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING"), what
        assert (await found.boss.has())["pool:acme"] == 60


async def test_bad_input_is_told_with_its_field(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await found.give(10)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"micro_credits": 0, "reference": "a"}, "micro_credits"),
            ({"micro_credits": -5, "reference": "a"}, "micro_credits"),
            ({"micro_credits": 2**62, "reference": "a"}, "micro_credits"),
            ({"micro_credits": 5}, "reference"),
            ({"micro_credits": 5, "reference": "a" * 200}, "reference"),
            ({"micro_credits": 5, "reference": "a\x1b[2J"}, "reference"),
            ({"micro_credits": 5, "reference": "a", "note": "a\0b"}, "note"),
            ({"micro_credits": 5, "reference": "a", "note": "a" * 257}, "note"),
        ]
        for fields, field in wrong:
            error = await refused(found.root.TopUp(tenant="acme", **fields))
            assert (error.code, list(error.violations)) == ("INVALID_ARGUMENT", [field])
        for source, target, field in (
            ("pool", "pool", "target"),
            ("spent:acme", "pool", "source"),
            ("issued", "pool", "source"),
            ("member:rival/boss", "pool", "source"),
            ("pool", "pool:rival", "target"),
        ):
            error = await refused(found.boss.Allocate(**move(1, source, target, "m")))
            assert (error.code, list(error.violations)) == ("INVALID_ARGUMENT", [field]), source
        error = await refused(found.boss.Allocate(**move(1, "pool", "member:anm", "m")))
        assert (error.code, "did you mean ann?" in error.message) == ("NOT_FOUND", True)
        error = await refused(found.give(1, tenant="acne"))
        assert (error.code, "did you mean acme?" in error.message) == ("NOT_FOUND", True)
        error = await refused(found.boss.Allocate(**move(11, "pool", "member:ann", "m")))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_FEW_CREDITS")
        error = await refused(found.give(11))
        assert (error.code, error.reason) == ("ALREADY_EXISTS", "REFERENCE_USED")
        wrong = [
            ({"from_day": "yesterday"}, "from_day"),
            ({"to_day": "2026-02-30"}, "to_day"),
            ({"from_day": "2026-02-02", "to_day": "2026-02-01"}, "from_day"),
        ]
        for fields, field in wrong:
            error = await refused(found.boss.ListUsage(filter=pb.UsageFilter(**fields)))
            assert list(error.violations) == [field]
        error = await refused(found.boss.ListUsage(by=["week"]))
        assert "must be one of day, tenant" in error.message


async def test_usage_is_seen_by_who_may(storage_url: str, tmp_path: Path) -> None:
    async with house(tmp_path, storage_url) as found:
        await found.give(10)
        for one in (found.ann, found.ann, found.dana):
            await one.infer()
        await found.written()
        by = ["member"]
        for who, expected in (
            (found.root, {"ann": 2, "dana": 1}),
            (found.boss, {"ann": 2, "dana": 1}),
            (found.dana, {"ann": 2, "dana": 1}),
            (found.ann, {"ann": 2}),
            (found.rival, {}),
        ):
            usage = (await who.ListUsage(by=by)).usage
            assert {one.member: one.calls for one in usage} == expected
        (whole,) = (await found.boss.ListUsage()).usage
        assert (whole.model, whole.calls, whole.micro_credits) == ("m", 3, 6 * MICRO)
        assert whole.bytes > 0
        lines = list(csv.DictReader((await found.ann.export()).splitlines()))
        assert [(line["member"], line["calls"], line["credits"]) for line in lines] == [
            ("ann", "2", "4")
        ]


async def test_the_csv_comes_day_by_day(tmp_path: Path) -> None:
    """A message a day at least, so nobody has to have all of it in memory."""
    days = [f"2001-11-0{number}" for number in range(1, 6)]
    async with house(tmp_path) as found:
        engine = found.town.mesh.router.engine
        assert engine is not None
        async with engine.begin() as connection:
            kept = {"tenant": "acme", "department": "ml", "member": "ann", "key": "k", "model": "m"}
            await connection.execute(
                insert(USAGE), [{"day": day, **kept, **dict.fromkeys(SUMS, 1)} for day in days]
            )
        assert await found.boss.days() == days
        run = of(found.town, tmp_path)
        text = await run("usage", "--csv", "--from", "2001-11-02", key=found.ann_key)
        assert [line["day"] for line in csv.DictReader(text.splitlines())] == days[1:]


async def test_alerts_are_listed(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await found.give(20)
        for _ in range(8):
            await found.ann.infer()
        assert not (await found.boss.ListAlerts()).alerts, "a fifth is left"
        for _ in range(2):
            await found.ann.infer()
        error = await refused(found.ann.infer())
        assert error.reason == "QUOTA_EXCEEDED"
        alerts = (await found.boss.ListAlerts()).alerts
        assert [(one.account, one.level, one.micro_credits) for one in alerts] == [
            ("pool:acme", "none", 0),
            ("pool:acme", "low", 2 * MICRO),
        ]
        assert {one.full_micro_credits for one in alerts} == {20 * MICRO}
        assert len((await found.root.ListAlerts()).alerts) == 2
        assert not (await found.ann.ListAlerts()).alerts
        text = await found.town.mesh.metrics()
        for level in ("low", "none"):
            assert f'aiflow_credit_alerts_total{{level="{level}",tenant="acme"}} 1.0' in text
        run, root = of(found.town, tmp_path), found.town.root.key
        table = await run("credits", "alerts", "acme", key=root)
        assert [line.split()[-3:] for line in table.splitlines()[1:]] == [
            ["none", "0", "20"],
            ["low", "2", "20"],
        ]


async def test_a_router_without_a_database_says_so() -> None:
    async with mesh() as running:
        anybody = Accountant(running.channel, Admin(running.channel))
        for call in (anybody.Balances(tenant="acme"), anybody.export(), anybody.ListUsage()):
            error = await refused(call)
            assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NO_STORAGE")


async def test_the_commands(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        run, root = of(found.town, tmp_path), found.town.root.key
        said = await run("credits", "top-up", "acme", "12.5", "--reference", "a", key=root)
        assert said == "pool:acme has 12.5 credits\n"
        again = await run("credits", "top-up", "acme", "12.5", "--reference", "a", key=root)
        assert "nothing was moved again" in again
        await run(
            *("credits", "allocate", "2.25", "--tenant", "acme", "--to", "member:ann"), key=root
        )
        listed = json.loads(await run("credits", "list", "acme", "--json", key=root))
        assert {one["account"]: one["credits"] for one in listed}["pool:acme"] == "10.25"
        assert "member:acme/ann  2.25" in await run("credits", "list", key=found.ann_key)
        await found.ann.infer()
        await found.written()
        table = await run("credits", "transfers", "acme", key=root)
        assert "member:acme/ann -2" in table
        assert "no account ran low" in await run("credits", "alerts", key=root)
        table = await run("usage", "--by", "member", "--by", "model", key=root)
        assert table.split()[:2] == ["member", "model"]
        text = await run("usage", "--csv", "--tenant", "acme", key=root)
        (line,) = csv.DictReader(text.splitlines())
        assert (line["member"], line["model"], line["calls"], line["credits"]) == (
            *("ann", "m", "1", "2"),
        )
        for words, expected in (
            (("credits", "top-up", "acme", "much"), '"much" is no amount'),
            (("credits", "top-up", "acme", "1e40"), '"1e40" is no amount'),
            (("credits", "top-up", "acme", "--", "-1"), "must be more than 0"),
            (("credits", "top-up", "acne", "1"), "did you mean acme?"),
            (("usage", "--from", "monday"), "must be a day such as 2026-11-24"),
        ):
            assert expected in await run(*words, key=root, code=1)
        assert "give it alone" in await run("usage", "--csv", "--json", key=root, code=2)
