"""The environment of a deployment, as the doctor checks it: databases, caches, folders, package versions."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from importlib import metadata
from pathlib import Path

import django
from django.apps import apps
from django.conf import settings
from django.core.cache import caches
from django.db import connections
from django.utils.module_loading import import_string
from django.utils.translation import gettext

from django_otel import conf
from django_otel._version import __version__
from django_otel.base import private_files
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config
from django_otel.multiprocess import lease, server_group
from django_otel.operations import versions
from django_otel.operations.translated import translate

#: The experimental packages' minor version of one release is so much above the stable ones' (1.45 and 0.66).
_BETA_OFFSET = 21
#: Released together with the API and the SDK, under their version.
_STABLE = re.compile(r"opentelemetry-(api|sdk|proto|exporter-otlp(-proto-(common|grpc|http))?)$")
#: Released together, under the experimental version.
_BETA = re.compile(r"opentelemetry-(instrumentation(-[\w-]+)?|semantic-conventions|util-http|distro)$")


def find_store_obstacle(config: Config) -> str:
    """Return why the console's store can be written nowhere; "" when it can, or when the console is off."""
    return find_store(config)[1] if conf.is_console_on(config) else ""


def find_store(config: Config) -> tuple[Path | None, str]:
    """Return where the console's store is, or would be made: a folder or file, and ""; else None and why nowhere."""
    from django_otel.tracestore.file import FILE_ENDINGS, candidate_folders

    path = config.console.path
    if path is not None and path.endswith(FILE_ENDINGS):
        obstacle = find_obstacle(Path(path))
        return (None, obstacle) if obstacle else (Path(path), "")
    reasons = []
    for folder in candidate_folders(path, config.surroundings, conf.deployment_identity(config)):
        obstacle = find_obstacle(folder)
        if not obstacle:
            return folder, ""
        reasons.append(obstacle)
    return None, "; ".join(reasons)


def find_obstacle(path: Path) -> str:
    """Why a file or folder cannot be made or written; "" when it can. Makes nothing."""
    place = path
    if not place.exists():
        place = place.parent
        # Folders on the way are made, one after the other.
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            return gettext("%(path)s is not a folder") % {"path": place}
    mode = os.W_OK | (os.X_OK if place.is_dir() else 0)
    if not os.access(place, mode, effective_ids=os.access in os.supports_effective_ids):
        return gettext("%(path)s is not writable") % {"path": place}
    return ""


def find_folder_obstacle(base: Path) -> str:
    """Why the workers' shared folder cannot be in `base`; "" when it can. Makes nothing."""
    folder = server_group.find_parent(base)
    try:
        private_files.check_folder(folder)
        place = folder
    except FileNotFoundError:
        # A folder named in the settings is made.
        place = base if base.exists() else base.parent
    except OSError as error:
        return translate(error.args[0]) if isinstance(error, private_files.Unusable) else f"{folder}: {error.strerror}"
    if not place.is_dir():
        return gettext("%(path)s is not a folder") % {"path": place}
    # Asked with the effective user, as the kernel will; also says no for a file system that is mounted read-only.
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return gettext("%(path)s is not writable") % {"path": place}
    return ""


def find_sharing_obstacle(config: Config) -> str:
    """Return why worker processes can share their numbers in no folder; "" when they can."""
    obstacles = [
        find_folder_obstacle(base)
        for base in server_group.candidate_bases(config.metrics.shared_dir, config.surroundings)
    ]
    return "; ".join(obstacles or [translate(server_group.NO_PLACE)]) if all(obstacles) else ""


def find_shared_folder(config: Config) -> Path | None:
    """The folder in which worker processes share their numbers, or would; None where they cannot."""
    if not lease.HAS_LOCKS:
        return None
    for base in server_group.candidate_bases(config.metrics.shared_dir, config.surroundings):
        if not find_folder_obstacle(base):
            return server_group.find_parent(base)
    return None


#: Subject, outcome ("ok", "note", "warning", "failed"), text, advice.
Line = tuple[str, str, str, str]


def examine(config: Config, timeout_s: float) -> Iterator[Line]:
    """Look at everything the settings stand on. Units: `timeout_s` is seconds, for one database or cache."""
    yield from _examine_versions()
    yield from _examine_router()
    probes: list[tuple[str, Callable[[], str]]] = [
        *((f"database {alias}", lambda alias=alias: _ask_database(alias)) for alias in connections),
        *((f"cache {alias}", lambda alias=alias: _ask_cache(alias)) for alias in caches.settings),
    ]
    yield from _run_probes(probes, timeout_s)
    if {"prometheus", "prometheus-registry"} & set(config.metrics.exporters):
        folder = find_shared_folder(config)
        if folder is not None:
            text = gettext("worker processes share their metrics in %(path)s.") % {"path": folder}
            yield "shared folder", "ok", text, ""
        else:
            yield (
                "shared folder",
                # Without file locks (Windows) no folder would help.
                "warning" if lease.HAS_LOCKS else "note",
                gettext(
                    "worker processes cannot share their metrics; /metrics shows those of the process that answers."
                ),
                gettext('Set OTEL["METRICS"]["SHARED_DIR"] to a folder that the server can write to.'),
            )
    yield from _examine_console(config)


def _run_probes(probes: list[tuple[str, Callable[[], str]]], timeout_s: float) -> Iterator[Line]:
    if not probes:
        return
    pool = ThreadPoolExecutor(len(probes), thread_name_prefix="django_otel-doctor")
    try:
        running = [(subject, pool.submit(probe)) for subject, probe in probes]
        for subject, future in running:
            try:
                yield subject, "ok", future.result(timeout_s), ""
            except FutureTimeoutError:
                text = gettext("no answer within %(seconds)s s.") % {"seconds": f"{timeout_s:g}"}
                yield subject, "warning", text, ""
            except Exception as error:
                # Its text may hold addresses and passwords.
                yield subject, "warning", gettext("cannot be used: %(error)s.") % {"error": type(error).__name__}, ""
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ask_database(alias: str) -> str:
    connection = connections[alias]
    with suppress_instrumentation():
        try:
            connection.ensure_connection()
            is_usable = connection.is_usable()
        finally:
            # This thread's own.
            connection.close()
    if not is_usable:
        raise RuntimeError
    return gettext("answers (%(kind)s).") % {"kind": connection.vendor}


def _ask_cache(alias: str) -> str:
    with suppress_instrumentation():
        caches[alias].get("django_otel.doctor")
    return gettext("answers (%(kind)s).") % {"kind": caches.settings[alias].get("BACKEND", "?").rpartition(".")[2]}


def _examine_router() -> Iterator[Line]:
    """Say where Channels' router, at `ASGI_APPLICATION`, refuses the ASGI lifespan."""
    path = getattr(settings, "ASGI_APPLICATION", None)
    if not path or not apps.is_installed("channels"):
        return
    try:
        application = import_string(path)
    except Exception:
        # Its server says what is wrong with it.
        return
    mapping = getattr(application, "application_mapping", None)
    if isinstance(mapping, Mapping) and "lifespan" not in mapping:
        yield (
            "ASGI",
            "note",
            gettext(
                "%(path)s is a router that refuses the ASGI lifespan. A graceful stop still exports the "
                "queues, as the last thing that the server does; SIGKILL loses them."
            )
            % {"path": path},
            gettext(
                'Add "lifespan" with the Django application to the router; the export then begins when the stop begins.'
            ),
        )


def _examine_console(config: Config) -> Iterator[Line]:
    if not conf.is_console_on(config):
        yield "console", "note", gettext("is off (CONSOLE.ENABLED, by default as DEBUG)."), ""
        return
    if config.console.enabled is None:
        text = gettext("is on because DEBUG is on; its pages are in the admin.")
    else:
        text = gettext("is on; its pages are in the admin.")
    yield "console", "ok", text, ""
    place, obstacle = find_store(config)
    if place is None:
        text = gettext("traces cannot be stored: %(reason)s.") % {"reason": obstacle}
        yield "store", "warning", text, gettext("Set %(setting)s.") % {"setting": 'OTEL["CONSOLE"]["PATH"]'}
    else:
        yield "store", "ok", gettext("traces are stored in %(path)s.") % {"path": place}, ""


def find_mismatches() -> tuple[str, list[str]]:
    """The SDK's version, and the OpenTelemetry packages that are of another release, as "name==fitting version"."""
    installed = {
        re.sub(r"[-_.]+", "-", name).lower(): found.version
        for found in metadata.distributions()
        if (name := found.metadata["Name"] or "").lower().startswith("opentelemetry")
    }
    sdk = installed.get("opentelemetry-sdk", "")
    numbers = re.fullmatch(r"1\.(\d+)\.(\d+)", sdk)
    if numbers is None:
        return sdk, []
    beta = f"0.{int(numbers[1]) + _BETA_OFFSET}b{numbers[2]}"
    wanted = {name: sdk for name in installed if _STABLE.fullmatch(name)}
    wanted |= {name: beta for name in installed if _BETA.fullmatch(name)}
    return sdk, sorted(f"{name}=={version}" for name, version in wanted.items() if installed[name] != version)


def _examine_versions() -> Iterator[Line]:
    sdk, mismatches = find_mismatches()
    python = ".".join(map(str, sys.version_info[:3]))
    text = f"django-otel-kit {__version__}, Django {django.__version__}, Python {python}, OpenTelemetry {sdk or '?'}"
    packages = versions.installed()
    conflicts = versions.find_conflicts(packages)
    if conflicts:
        yield "versions", "failed", f"{text}. {' '.join(conflicts)}", _run(versions.repair_command(packages))
    elif mismatches:
        names = ", ".join(entry.partition("==")[0] for entry in mismatches)
        said = gettext("Packages of another release: %(names)s.") % {"names": names}
        yield "versions", "warning", f"{text}. {said}", _run(f"pip install {' '.join(mismatches)}")
    else:
        yield "versions", "ok", f"{text}.", ""


def _run(command: str) -> str:
    return gettext("Run: %(command)s") % {"command": command}
