"""The group of processes outside the web server: task workers and their schedulers.

All of a project's on one host share one folder, whichever program started them and however often it was restarted.
The web server's page adds their numbers to its own, see `add_background`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from django_otel.base.private_files import check_folder, temporary_folder
from django_otel.metrics.merging import merge_processes
from django_otel.metrics.model import Family
from django_otel.multiprocess.lease import HAS_LOCKS
from django_otel.multiprocess.reader import Reader
from django_otel.multiprocess.server_group import BACKGROUND_PREFIX, find_parent


def build_background_name(identity: str) -> str:
    """Return the folder name of the group of the project known by `identity`."""
    return BACKGROUND_PREFIX + hashlib.sha256(identity.encode()).hexdigest()[:16]


def background_bases(shared_dir: str | None) -> list[Path]:
    """Return where the folder may be, best first.

    No folder that the system makes for one service or session: web server and worker are two of them.
    """
    if shared_dir is not None:
        return [Path(shared_dir)]
    return [Path(path) for path in ("/dev/shm", temporary_folder()) if path]  # noqa: S108 (a private folder is made in it and checked)


class BackgroundReader:
    """Reads the background group's numbers without being one of its processes."""

    def __init__(self, name: str, bases: list[Path], on_skip: Callable[[str], None] = lambda reason: None) -> None:
        #: Folders that the group may be in.
        self.folders = [find_parent(base) / name for base in bases]
        self._on_skip = on_skip
        self._readers: Mapping[Path, Reader] = {}

    def collect(self) -> list[Family]:
        """Return every family over all processes of the group, at this moment; empty where there is none."""
        if not HAS_LOCKS:
            return []
        parts: list[list[Family]] = []
        for folder in self.folders:
            try:
                check_folder(folder)
            except OSError:
                continue
            reader = self._readers.get(folder)
            if reader is None:
                reader = Reader(folder, self._on_skip)
                self._readers = {**self._readers, folder: reader}
            parts.append(reader.collect())
        return parts[0] if len(parts) == 1 else merge_processes((part, True) for part in parts)


def build_background_reader(identity: str, shared_dir: str | None) -> BackgroundReader:
    """Return the reader of the group of the project known by `identity`."""
    return BackgroundReader(build_background_name(identity), background_bases(shared_dir))


def add_background(own: list[Family], background: list[Family]) -> list[Family]:
    """Add the background group's families to those of a web server."""
    if not background:
        return own
    names = {family.name for family in own} & {family.name for family in background}
    # Own numbers last: where an instrument's bounds differ, the web server's count.
    both = [[family for family in part if family.name in names] for part in (background, own)]
    single = [family for part in (own, background) for family in part if family.name not in names]
    return [*single, *merge_processes((part, True) for part in both)]
