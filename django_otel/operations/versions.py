"""Versions of the installed OpenTelemetry packages: whether they fit together, and the command that repairs them.

A release of OpenTelemetry for Python has two numbers: 1.45.1 for the API, the
SDK and the exporters, and 0.66b1 for everything that is not stable. Packages of
different releases refuse each other's metadata, and pip only warns about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata

from django.utils.translation import gettext

#: Packages with the stable number, beside those with the number of the pre-releases.
_STABLE = re.compile(r"opentelemetry-(api|sdk|proto|exporter-(otlp.*|zipkin.*)|propagator-(b3|jaeger))")
_STABLE_VERSION = re.compile(r"1\.(\d+)\.(\d+)")
_BETA_VERSION = re.compile(r"0\.(\d+)b(\d+)")
#: 1.45.1 and 0.66b1 are one release.
_MINOR_DIFFERENCE = 21
#: Not every package has its version of this release (psycopg2 has none).
_INCOMPLETE = frozenset({(45, 2)})


def installed() -> dict[str, str]:
    """Return the version of every installed package of OpenTelemetry, by name."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = _normalise(distribution.metadata["Name"] or "")
        if name.startswith("opentelemetry-"):
            # The first one on the path is the one that is imported.
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def find_conflicts(packages: Mapping[str, str]) -> list[str]:
    """Return one sentence for each requirement between `packages` that is not met."""
    return [
        _describe(f"{name} {version}", wanted, packages.get(other))
        for name, version in packages.items()
        for other, wanted in _unmet(name, packages)
    ]


def repair_command(packages: Mapping[str, str]) -> str:
    """Return the one `pip install` that brings all of `packages` to the oldest release among them."""
    releases = {name: release for name, version in packages.items() if (release := _release(name, version))}
    missing = {other for name in packages for other, _ in _unmet(name, packages) if other not in packages}
    complete = [release for release in releases.values() if release not in _INCOMPLETE]
    minor, patch = min(complete, default=(45, 1))
    stable, beta = f"1.{minor}.{patch}", f"0.{minor + _MINOR_DIFFERENCE}b{patch}"
    wanted = [f'"{name}=={stable if _STABLE.fullmatch(name) else beta}"' for name in sorted({*releases, *missing})]
    return "python -m pip install " + " ".join(wanted)


def _describe(package: str, wanted: str, found: str | None) -> str:
    if found is None:
        message = gettext("%(package)s needs %(wanted)s, but it is not installed.")
    else:
        message = gettext("%(package)s needs %(wanted)s, but %(found)s is installed.")
    return message % {"package": package, "wanted": wanted, "found": found}


def _unmet(name: str, packages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Requirements of an installed package on others of OpenTelemetry that are not met: name, and as it is written."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        other = _normalise(requirement.name)
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not other.startswith("opentelemetry-") or not is_wanted:
            continue
        if other not in packages or not requirement.specifier.contains(packages[other], prereleases=True):
            yield other, f"{requirement.name}{requirement.specifier}"


def _release(name: str, version: str) -> tuple[int, int] | None:
    """Minor and patch of the stable number; None for packages of other projects, which count for themselves."""
    if _STABLE.fullmatch(name):
        match = _STABLE_VERSION.fullmatch(version)
        return (int(match[1]), int(match[2])) if match else None
    match = _BETA_VERSION.fullmatch(version)
    return (int(match[1]) - _MINOR_DIFFERENCE, int(match[2])) if match else None


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
