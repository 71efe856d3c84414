"""`aiflow policy` and `aiflow check` beside a router that runs."""

import asyncio
import json
import sys
from pathlib import Path

from integration.router.kit import mesh

ROUTE = "routes: [{match: {model: m}, timeout: %s}]\n"


async def aiflow(*arguments: str, cwd: Path, router: str = "", code: int = 0) -> str:
    """What it prints, on stdout or where it fails on stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "aiflow_sdk.command", *arguments),
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **({"AIFLOW_ROUTER": router} if router else {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return (out if code == 0 else err).decode()


async def test_a_policy_is_set_shown_and_rolled_back(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(ROUTE % "3s")
    (tmp_path / "wrong.yaml").write_text("routes:\n- match: {model: m}\n  timout: 1s\n")
    async with mesh(ROUTE % "2s") as m:
        router, first = m.router.grpc_address, m.router.policies.current.version
        said = await aiflow("policy", "set", "r.yaml", "--dry-run", cwd=tmp_path, router=router)
        assert "  ~ timeout: 2s -> 3s" in said
        assert "this was a dry run" in said
        assert m.router.policies.current.version == first
        said = await aiflow("policy", "set", "r.yaml", "--json", cwd=tmp_path, router=router)
        second = json.loads(said)["policy"]["version"]
        assert m.router.policies.current.version == second
        said = await aiflow("policy", "set", "wrong.yaml", cwd=tmp_path, router=router, code=1)
        assert "wrong.yaml:3:3: unknown key `routes.0.timout`" in said
        shown = await aiflow("policy", "show", cwd=tmp_path, router=router)
        assert f"# policy {second}" in shown
        assert "wrong.yaml:3:3" in shown
        (tmp_path / "shown.yaml").write_text(shown)
        said = await aiflow("policy", "set", "shown.yaml", cwd=tmp_path, router=router)
        assert f"{second} -> {second}" in said
        listed = json.loads(await aiflow("policy", "list", "--json", cwd=tmp_path, router=router))
        assert [one["version"] for one in listed] == [second, first]
        await aiflow("policy", "rollback", first, cwd=tmp_path, router=router)
        assert m.router.policies.current.version == first


async def test_check_compares_with_what_runs(tmp_path: Path) -> None:
    file = tmp_path / "aiflow.yaml"
    file.write_text(ROUTE % "5s")
    async with mesh(ROUTE % "2s") as m:
        router = m.router.grpc_address
        said = await aiflow("check", cwd=tmp_path, router=router)
        assert "# model m  5s" in said
        assert f"# against {m.router.policies.current.version} from file" in said
        assert "#   ~ timeout: 2s -> 5s" in said
        told = json.loads(await aiflow("check", "--json", "--router", router, cwd=tmp_path))
        assert told["difference"] == ["~ model m", "  ~ timeout: 2s -> 5s"]
        assert told["config"]["routes"][0]["timeout"] == "5s"
    # Nobody has to run where one is only looked for.
    said = await aiflow("check", cwd=tmp_path, router="127.0.0.1:1")
    assert "against" not in said
    said = await aiflow("check", "--router", "127.0.0.1:1", cwd=tmp_path, code=1)
    assert "cannot reach the router" in said
