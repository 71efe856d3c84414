"""deploy/alerts.yml: its rules are ones of Prometheus, about metrics that a router has."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import deploy
from fixtures.consul import Agent
from integration.router.consul_kit import discovery, entry, register
from integration.router.kit import backend, mesh, until
from prometheus_client.parser import text_string_to_metric_families

FILE = deploy.FOLDER / "alerts.yml"
# The public key of RFC 8037's example.
SIGNS = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(FILE.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def identity(folder: Path) -> str:
    """A database, and tokens of an issuer: their metrics are there only with them."""
    jwks, database = folder / "jwks.json", folder / "aiflow.db"
    jwks.write_text(json.dumps({"keys": [SIGNS]}))
    return (
        f"auth: {{jwt: {{issuer: i, audience: a, jwks_file: '{jwks}'}}}}\n"
        f"storage: {{url: 'sqlite:///{database}'}}\n"
    )


async def test_every_metric_and_label_of_an_alert_exists(consul: Agent, tmp_path: Path) -> None:
    named = {name for rule in rules() for name in re.findall(r"aiflow_\w+", rule["expr"])}
    config = f"{discovery(consul.address)}\npolicy: {{consul_kv: {{key: aiflow/alerts}}}}\n"
    async with backend() as server, mesh(config + identity(tmp_path)) as running:
        await register(consul, entry(server.address, "alerts", backend="alerts"))
        await until(lambda: "alerts" in running.router.view.snapshot.models)
        wrong = {"Name": "odd-alerts", "Port": 1, "Tags": ["aiflow"]}
        consul.ask("PUT", "/v1/agent/service/register", wrong)
        families = list(text_string_to_metric_families(await running.metrics()))
        for service in ("alerts@" + server.address, "odd-alerts"):
            consul.ask("PUT", f"/v1/agent/service/deregister/{service}")
    there = {family.name for family in families}
    there |= {f"{family.name}_total" for family in families if family.type == "counter"}
    assert named <= there
    assert len(named) >= 5


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_says_what_is_wrong_and_how_bad_it_is(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"AIFlow[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's own checker, which is fetched where there is none."""
    return str(deploy.found("debian.sh", "promtool", "prometheus"))


def test_prometheus_takes_the_file(promtool: str) -> None:
    subprocess.run([promtool, "check", "rules", FILE], check=True)


def test_the_right_person_is_told_at_the_right_time(promtool: str, tmp_path: Path) -> None:
    cases = Path(__file__).with_name("alerts_test.yml").read_text()
    file = tmp_path / "test.yml"
    file.write_text(cases.replace("RULES", str(FILE)))
    done = subprocess.run(
        [promtool, "test", "rules", file], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
