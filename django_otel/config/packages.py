"""Packages and objects that settings name: whether they are installed, and the object behind a dotted path."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from django_otel.config.schema import ConfigError, Problem


def package_version(distribution: str) -> str:
    """The installed version of a distribution, or ""."""
    # The folder of metadata written by pip has the name. `importlib.metadata` imports as much as the rest of our
    # start-up.
    prefix = f"{distribution.replace('-', '_')}-"
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208 (no path is made of the thousand others)
                if name.startswith(prefix) and name.endswith(".dist-info") and Path(folder, name, "METADATA").exists():
                    return name.removeprefix(prefix).removesuffix(".dist-info")
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def import_path(path: str) -> Any:
    """Return the object of a dotted path. Errors: `ConfigError` (E003) when it cannot be imported."""
    module_name, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise ConfigError(
            [
                Problem(
                    "django_otel.E003",
                    f"{path!r} in OTEL cannot be imported: {type(error).__name__}: {error}.",
                    "Write the path of something that can be imported, as in 'shop.telemetry.enrich'.",
                )
            ]
        ) from error


def missing_package(name: str, package: str, extra: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                "django_otel.E004",
                f"OTEL asks for {name!r}, but the package {package} is not installed.",
                f"Run: pip install {extra}",
            )
        ]
    )
