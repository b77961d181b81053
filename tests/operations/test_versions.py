"""The doctor's look at versions: metadata of packages that do not fit, and the command that repairs them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata

from packaging.requirements import Requirement

from django_otel.operations import surroundings, versions
from tests import services


def write(folder, name, version, *requires):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {item}" for item in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_this_environment_fits():
    packages = versions.installed()
    assert packages["opentelemetry-sdk"] == metadata.version("opentelemetry-sdk")
    assert versions.find_conflicts(packages) == []


def test_a_package_of_another_release_is_named_with_one_command(tmp_path, monkeypatch):
    """What `pip install opentelemetry-instrumentation-httpx` left behind."""
    write(tmp_path, "opentelemetry-api", "1.45.2")
    write(tmp_path, "opentelemetry-sdk", "1.45.1", "opentelemetry-api==1.45.1",
          "opentelemetry-semantic-conventions==0.66b1")  # fmt: skip
    write(tmp_path, "opentelemetry-semantic-conventions", "0.66b1", "opentelemetry-api==1.45.1")
    write(tmp_path, "opentelemetry-instrumentation-httpx", "0.66b2", "opentelemetry_api~=1.12",
          "opentelemetry-util-http==0.66b2", "httpx>=0.18; extra == 'instruments'")  # fmt: skip
    # Of another project, with a number of its own.
    write(tmp_path, "opentelemetry-instrumentation-openai", "0.40.14", "opentelemetry-api<2")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    packages = versions.installed()
    conflicts = versions.find_conflicts(packages)
    command = versions.repair_command(packages)
    monkeypatch.undo()
    assert conflicts == [
        "opentelemetry-instrumentation-httpx 0.66b2 needs opentelemetry-util-http==0.66b2, but it is not installed.",
        "opentelemetry-sdk 1.45.1 needs opentelemetry-api==1.45.1, but 1.45.2 is installed.",
        "opentelemetry-semantic-conventions 0.66b1 needs opentelemetry-api==1.45.1, but 1.45.2 is installed.",
    ]
    assert command == (
        'python -m pip install "opentelemetry-api==1.45.1" "opentelemetry-instrumentation-httpx==0.66b1" '
        '"opentelemetry-sdk==1.45.1" "opentelemetry-semantic-conventions==0.66b1" "opentelemetry-util-http==0.66b1"'
    )


def test_the_doctor_says_so(monkeypatch):
    [(subject, outcome, _, _)] = surroundings._examine_versions()
    assert (subject, outcome) == ("versions", "ok")
    monkeypatch.setattr(versions, "installed", lambda: {"opentelemetry-api": "1.0.0", "opentelemetry-sdk": "1.45.1"})
    [(_, outcome, text, advice)] = surroundings._examine_versions()
    # What is needed is read from the installed SDK.
    needed = metadata.version("opentelemetry-sdk")
    assert outcome == "failed" and f"needs opentelemetry-api=={needed}, but 1.0.0 is installed" in text
    assert advice.startswith("Run: python -m pip install ")


def test_each_instrumentor_extra_is_the_entry_points_name():
    """`django-otel-kit[httpx]` is for `OTEL["INSTRUMENT"] = ["httpx"]`."""
    project = tomllib.loads((services.ROOT / "pyproject.toml").read_text())["project"]
    found = {
        name: wanted
        for name, [wanted, *others] in project["optional-dependencies"].items()
        if not others and wanted.startswith("opentelemetry-instrumentation-")
    }
    assert {"httpx", "celery", "sqlalchemy", "fastapi", "psycopg", "aiohttp-client"} <= set(found)
    for name, wanted in found.items():
        assert wanted == f"opentelemetry-instrumentation-{name}>=0.64b0,!=0.66b2"
    known = {entry.name for entry in metadata.entry_points(group="opentelemetry_instrumentor")}
    assert {"httpx", "sqlalchemy", "fastapi", "psycopg", "aiohttp-client"} <= known


def requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of OpenTelemetry: of the package itself under "", and of each extra."""
    project = tomllib.loads((services.ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [wanted for wanted in map(Requirement, texts) if wanted.name.startswith("opentelemetry-")]
        for extra, texts in groups.items()
    }


def test_no_requirement_lets_in_the_release_that_is_not_whole():
    """Older pip does not find its way back from it, and ends in ResolutionImpossible with many extras at once."""
    packages = [wanted for group in requirements().values() for wanted in group]
    assert len(packages) > 30
    for wanted in packages:
        release = "0.66b2" if wanted.specifier.contains("0.65b0", prereleases=True) else "1.45.2"
        assert not wanted.specifier.contains(release, prereleases=True), wanted


def test_no_extra_holds_the_others_at_an_old_release():
    """An extra that is added later would take them back, and leave packages behind that do not fit."""
    for extra, packages in requirements().items():
        assert all(
            wanted.specifier.contains("0.66b1", prereleases=True) or wanted.specifier.contains("1.45.1")
            for wanted in packages
        ), extra


def test_the_command_is_run_as_it_stands():
    command = versions.repair_command(versions.installed())
    assert subprocess.run(["sh", "-n", "-c", command], timeout=10).returncode == 0
