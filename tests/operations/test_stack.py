"""deploy/stack: every file parses, refers to files that exist, and a real Prometheus runs with its configuration."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest
import yaml

from tests import services

STACK = services.ROOT / "deploy" / "stack"
COMPOSE = yaml.safe_load((STACK / "compose.yaml").read_text())


def test_the_generated_files_are_those_of_this_version():
    """Run `python deploy/stack/generated.py` after a change of dashboards, rules or the Collector."""
    spec = importlib.util.spec_from_file_location("generated", STACK / "generated.py")
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    for path, text in generated.build_files().items():
        assert (STACK / path).read_text(encoding="utf-8") == text, path
    dashboards = {f"grafana/dashboards/{path.name}" for path in (STACK / "grafana" / "dashboards").iterdir()}
    assert dashboards <= generated.build_files().keys()


@pytest.mark.parametrize("path", sorted(STACK.rglob("*.y*ml")), ids=lambda path: path.name)
def test_every_file_is_yaml(path):
    assert all(isinstance(part, dict) for part in yaml.safe_load_all(path.read_text()))


def test_the_services_mount_files_that_exist_and_call_services_that_exist():
    names, volumes = COMPOSE["services"].keys(), COMPOSE["volumes"].keys()
    for name, service in COMPOSE["services"].items():
        assert set(service.get("depends_on", [])) <= names, name
        # A version, so that the stack does not change by itself.
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        targets = []
        for mount in service.get("volumes", []):
            source, target, *_ = mount.split(":")
            assert (STACK / source).exists() if source.startswith("./") else source in volumes, mount
            targets.append(target)
        for part in service.get("command", []):
            file = re.search(r"config(?:\.file)?=(\S+)", part)
            assert file is None or file[1] in targets, part
        # Published on this machine alone.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for value in service.get("environment", {}).values():
            host = urllib.parse.urlsplit(str(value)).hostname
            assert host is None or host in names, value
    build = COMPOSE["services"]["app"]["build"]
    assert (STACK / build["context"] / build["dockerfile"]).exists()


def test_the_collector_gets_every_variable_it_reads():
    wanted = set(re.findall(r"\$\{env:(\w+)\}", (STACK / "collector.yaml").read_text()))
    assert wanted == COMPOSE["services"]["collector"]["environment"].keys()


def test_grafana_finds_its_sources_and_links_exemplars():
    sources = yaml.safe_load((STACK / "grafana" / "datasources.yaml").read_text())["datasources"]
    uids = {source["uid"] for source in sources}
    for source in sources:
        host = urllib.parse.urlsplit(source["url"]).hostname
        assert host in COMPOSE["services"]
        for link in source.get("jsonData", {}).get("exemplarTraceIdDestinations", []):
            assert link["datasourceUid"] in uids and link["name"] == "trace_id"
    provider = yaml.safe_load((STACK / "grafana" / "provider.yaml").read_text())["providers"][0]
    mounts = [mount.split(":")[1] for mount in COMPOSE["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    for path in (STACK / "grafana" / "dashboards").iterdir():
        assert json.loads(path.read_text())["panels"]


def test_the_manifests_fit_the_schema_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is in the extra test")
    kinds = []
    for manifest in yaml.safe_load_all((STACK / "kubernetes.yaml").read_text()):
        kinds.append(manifest["kind"])
        if manifest["apiVersion"] != "monitoring.coreos.com/v1":
            validate.validate(manifest, validate.latest_version(), strict=True)
    assert "ServiceMonitor" in kinds


def test_the_service_monitor_selects_the_service_and_its_token():
    manifests = {
        (part["kind"], part["metadata"]["name"]): part
        for part in yaml.safe_load_all((STACK / "kubernetes.yaml").read_text())
    }
    monitor = manifests["ServiceMonitor", "shop"]["spec"]
    service = manifests["Service", "shop"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    key = endpoint["authorization"]["credentials"]
    assert key["key"] in manifests["Secret", key["name"]]["stringData"]
    deployment = yaml.safe_load((services.ROOT / "deploy" / "kubernetes.yaml").read_text())
    assert deployment["spec"]["template"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    config = yaml.safe_load(manifests["ConfigMap", "collector"]["data"]["collector.yaml"])
    assert config["service"]["pipelines"]["traces"]["exporters"] == list(config["exporters"])


def programs(*names: str) -> list[str]:
    found = [shutil.which(name) for name in names]
    if None in found:
        services.missing("prometheus is not installed. Run: apt-get install prometheus")
    return [str(path) for path in found]


@pytest.mark.debian
def test_prometheus_runs_with_the_configuration_and_scrapes(tmp_path):
    """As in the stack, but for the address of the app and the intervals."""
    promtool, prometheus = programs("promtool", "prometheus")
    shutil.copy(STACK / "rules.yml", tmp_path)
    with services.serve("gunicorn", {"SERVICE_NAME": "shop", "METRICS_VIEW": {"ALLOW": "all"}}, workers=2) as server:
        text = (STACK / "prometheus.yml").read_text().replace("15s", "1s")
        assert "app:8000" in text
        text = text.replace("app:8000", urllib.parse.urlsplit(server.url).netloc)
        (tmp_path / "prometheus.yml").write_text(text)
        done = subprocess.run(
            [promtool, "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        port = services.free_port()
        options = [part for part in COMPOSE["services"]["prometheus"]["command"] if part.startswith("--enable")]
        command = [
            prometheus, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", *options,
        ]  # fmt: skip
        with services.running(command, log=tmp_path / "log") as process:
            running = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
            services.wait_until(lambda: services.is_listening(port), 30, "Prometheus")

            def ask(path: str) -> dict:
                status, _, body = running.get(path)
                return json.loads(body)["data"] if status == 200 else {}

            def has_scraped() -> bool:
                server.get("/hello/")
                query = urllib.parse.quote('up{job="shop"} == 1')
                return bool(ask(f"/api/v1/query?query={query}").get("result"))

            services.wait_until(has_scraped, 30, "a scrape")

            def states() -> set[str]:
                return {rule["health"] for group in ask("/api/v1/rules")["groups"] for rule in group["rules"]}

            services.wait_until(lambda: states() == {"ok"}, 30, "every rule to be evaluated")


def test_the_paths_of_the_page_exist():
    page = (services.ROOT / "docs" / "deploy.md").read_text()
    paths = re.findall(r"`(deploy/[\w./-]+)`", page)
    assert paths
    for path in paths:
        assert Path(services.ROOT / path).exists(), path
