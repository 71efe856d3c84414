"""`aiflow tenant`, `aiflow member` and `aiflow key` against a real router."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from integration.router.kit import mesh
from integration.tenancy.kit import Town, town

Aiflow = Callable[..., Awaitable[str]]


def of(t: Town, cwd: Path) -> Aiflow:
    """Runs the command with a key: what it prints, on stdout or where it fails on stderr."""
    router = t.mesh.router.grpc_address
    return lambda *words, key="", code=0: aiflow(*words, cwd=cwd, router=router, key=key, code=code)


async def aiflow(*words: str, cwd: Path, router: str, key: str = "", code: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "aiflow_sdk.command", *words),
        cwd=cwd,
        env={
            "PATH": "/usr/bin:/bin",
            "AIFLOW_ROUTER": router,
            "COLUMNS": "200",
            **({"AIFLOW_API_KEY": key} if key else {}),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return (out if code == 0 else err).decode()


async def test_from_the_first_key_to_a_tenant_that_administers_itself(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        run, root = of(t, tmp_path), t.root.key
        said = await run("tenant", "create", "acme", "--weight", "2", key=root)
        assert "aiflow member create NAME --tenant acme --role tenant_admin" in said
        acme = ("--tenant", "acme")
        await run("member", "create", "boss", *acme, "--role", "tenant_admin", key=root)
        boss = await run("key", "create", "boss", *acme, "--name", "laptop", key=root)
        boss = boss.strip()
        assert boss.startswith("aif_"), "the key alone is on stdout"
        who = json.loads(await run("key", "whoami", "--json", key=boss))
        assert (who["tenant"], who["member"], who["role"]) == ("acme", "boss", "tenant_admin")
        await run("tenant", "department", "create", "sales", key=boss)
        assert "sales" in await run("tenant", "department", "list", key=boss)
        await run("member", "create", "dana", "--department", "sales", key=boss)
        shown = await run("member", "set", "dana", "--role", "department_admin", key=boss)
        assert "department_admin" in shown
        listed = json.loads(await run("member", "list", "--json", key=boss))
        assert [one["member"] for one in listed] == ["boss", "dana"]
        told = await run(
            *("key", "create", "dana", "--name", "[b]app[/b]", "--model", "gpt-*"),
            *("--lives", "30d", "--json"),
            key=boss,
        )
        made = json.loads(told)
        assert made["key"]["models"] == ["gpt-*"]
        key = made["key"]["key"]
        told = await run("key", "set", key, "--model", "a", "--model", "b", "--json", key=boss)
        assert json.loads(told)["models"] == ["a", "b"]
        told = await run("key", "set", key, "--model", "", "--method", "/a.B/*", key=boss)
        assert "all" in told
        assert "/a.B/*" in told
        table = await run("key", "list", "--member", "dana", key=boss)
        assert "[b]app[/b]" in table, "what somebody else wrote is shown as it is"
        rotated = json.loads(
            await run("key", "rotate", made["key"]["key"], "--overlap", "2h", "--json", key=boss)
        )
        assert rotated["replaced"]["key"] == made["key"]["key"]
        assert rotated["key"]["expires_s"] == pytest.approx(made["key"]["expires_s"])
        said = await run("key", "revoke", made["key"]["key"], key=boss)
        assert "does not work any more" in said
        await run("member", "disable", "dana", key=boss)
        assert json.loads(await run("member", "show", "dana", "--json", key=boss))["disabled_s"]
        await run("tenant", "set", "--pays-first", "pool", key=boss)
        assert "pool" in await run("tenant", "show", key=boss)
        assert "acme" in await run("tenant", "list", key=boss)
        audit = await run("tenant", "audit", "--limit", "3", key=boss)
        assert "tenant.update" in audit
        assert "acme/boss (aif_" in audit
        assert len(json.loads(await run("tenant", "audit", "--json", key=boss))) > 8


async def test_somebody_is_invited_applies_and_takes_a_key(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        run = of(t, tmp_path)
        boss = (await t.tenant("acme")).key
        code = (await run("member", "invite", "--uses", "2", key=boss)).strip()
        assert "waits" in await run("member", "applications", key=boss)
        secret = (await run("member", "apply", code, "ann", "--note", "Ann of sales")).strip()
        assert "waiting" in await run("member", "applied", secret)
        assert "FAILED_PRECONDITION/NOT_APPROVED" in await run("member", "take-key", secret, code=1)
        (waiting,) = json.loads(await run("member", "applications", "--json", key=boss))
        assert waiting["note"] == "Ann of sales"
        assert "ann is a member" in await run("member", "approve", waiting["application"], key=boss)
        key = (await run("member", "take-key", secret, "--name", "phone")).strip()
        assert json.loads(await run("key", "whoami", "--json", key=key))["name"] == "phone"
        (invitation,) = json.loads(await run("member", "invitations", "--json", key=boss))
        await run("member", "uninvite", invitation["invitation"], key=boss)
        assert "PERMISSION_DENIED/CODE_INVALID" in await run("member", "apply", code, "eve", code=1)


async def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        run, root = of(t, tmp_path), t.root.key
        boss = (await t.tenant("acme")).key
        said = await run("member", "list", "--tenant", "acmee", key=root, code=1)
        assert "NOT_FOUND/TENANT_NOT_FOUND" in said
        assert "did you mean acme?" in said
        said = await run("tenant", "create", "rival", key=boss, code=1)
        assert "PERMISSION_DENIED/ROLE_MISSING" in said
        said = await run("tenant", "create", "acme", key=root, code=1)
        assert "ALREADY_EXISTS/TENANT_EXISTS" in said
        said = await run("key", "create", "boss", "--name", "k", "--lives", "30", key=boss, code=2)
        assert "write 45s, 90m, 12h or 30d" in said
        said = await run("member", "set", "boss", key=boss, code=2)
        assert "--department or --role" in said
        said = await run("key", "set", "aif_00000000", key=boss, code=2)
        assert "--name, --model or --method" in said
        said = await run("tenant", "show", "a\udcff", key=root, code=2)
        assert "cannot be sent: write UTF-8" in said
        said = await run("tenant", "audit", "--limit", "9" * 20, key=root, code=2)
        assert "is not in the range" in said
    async with mesh() as m:
        said = await aiflow("tenant", "list", cwd=tmp_path, router=m.router.grpc_address, code=1)
        assert "FAILED_PRECONDITION/NO_STORAGE" in said
