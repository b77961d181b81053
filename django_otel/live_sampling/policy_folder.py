"""Folder source of the sampling policy: the file that all processes of a host share."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from django.db import connections

from django_otel import runtime
from django_otel.live_sampling.policy_rows import policy_alias

if TYPE_CHECKING:
    from django_otel.multiprocess.host_registry import HostRegistry


def open_registry() -> HostRegistry:
    # Here: what shares files between processes is of no use before there is something to share.
    from django_otel.multiprocess import host_registry, server_group

    config = runtime.current().config
    bases = server_group.candidate_bases(config.metrics.shared_dir, config.surroundings)
    return host_registry.HostRegistry(host_registry.registry_folder(_identity(), bases))


def _identity() -> str:
    """Return the identity of a policy on this host: the database of its rows."""
    wanted = connections[policy_alias()].settings_dict
    name = wanted.get("NAME") or ""
    # A relative path of SQLite means another file in another folder.
    place = str(Path(name).resolve()) if "sqlite" in wanted["ENGINE"] else str(name)
    return json.dumps([wanted["ENGINE"], place, str(wanted.get("HOST") or ""), str(wanted.get("PORT") or "")])


def group_name() -> str:
    """The server instance whose processes divide the limit per second among them."""
    return runtime.server_group() or f"{socket.gethostname()}-{os.getpid()}"
