"""Groups of processes that share their metrics, and their folders.

The folder is `<base>/django-otel-<euid>/<group>/`. A group is one server
instance: its name hashes the project and the owning master process (pid, start
time, pid namespace), so that two deployments on one host never mix and a new
master starts at zero. A name given in the settings overrides that.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django_otel.base import guard
from django_otel.base.private_files import (
    Unusable,
    check_folder,
    make_folder,
    open_file,
    temporary_folder,
    touched_at_s,
)
from django_otel.base.sentences import Sentence, gettext_noop
from django_otel.multiprocess.lease import HAS_LOCKS, living_slots
from django_otel.multiprocess.processes import pid_namespace, start_ticks

_OWNER_FILE = "owner"
#: Said where there is no candidate at all.
NO_PLACE = Sentence(gettext_noop("no folder for shared or temporary files was found"))
#: A group's folder may be half made by a process that is just starting; it is not swept before this age, in seconds.
_SWEEP_AGE_S = 60.0
#: Of a group whose master cannot be looked for (another container): since when nothing was written, in seconds.
FOREIGN_AGE_S = 3600.0
#: The beginning of the folder's name of a group of task workers.
BACKGROUND_PREFIX = "background-"
#: Of the group of task workers, which is to outlive their restarts, in seconds.
BACKGROUND_AGE_S = 7 * 86400.0


def candidate_bases(shared_dir: str | None, environ: Mapping[str, str]) -> list[Path]:
    """Return where the folder may be, best first; only the one of the settings when there is one.

    Empty where the system has no folder for such files.
    """
    if shared_dir is not None:
        return [Path(shared_dir)]
    found = [environ.get("RUNTIME_DIRECTORY", "").split(":")[0], environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm",  # noqa: S108 (a private folder is made in it and checked)
             temporary_folder()]  # fmt: skip
    return [Path(path) for path in found if path]


def find_parent(base: Path) -> Path:
    """Return the folder of all groups of this user in `base`."""
    return base / f"django-otel-{os.geteuid()}"


def start_time(pid: int) -> str:
    """Return when a process began, in clock ticks since boot; "" if it does not exist or the system does not say."""
    return str(start_ticks(pid) or "")


def _pid_namespace() -> str:
    return str(pid_namespace() or "")


def owner_pid(configured_pid: int, environ: Mapping[str, str]) -> int | None:
    """The master process this one belongs to; None for a server of a single process.

    `configured_pid` is the process in which the settings were applied.
    """
    own = os.getpid()
    if configured_pid != own:
        # Forked since: the master loaded the application (--preload, a task worker's pool).
        return configured_pid
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None:
        master: int = uwsgi.masterpid()
        return master or None
    # A child of multiprocessing has it; for all others importing it would be in vain.
    multiprocessing: Any = sys.modules.get("multiprocessing.process")
    parent = None if multiprocessing is None else multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        # uvicorn --workers, granian.
        return int(parent.pid)
    if environ.get("RUN_MAIN") == "true" or _is_gunicorn_worker():
        return os.getppid()
    return None


def _is_gunicorn_worker() -> bool:
    if "gunicorn.arbiter" not in sys.modules:
        return False
    try:
        return b"gunicorn" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        # No /proc: the master itself does not measure, so this is a worker.
        return True


def build_group_name(project: str, group: str | None, owner: int | None) -> str | None:
    """The folder name of this process's group; None for a server of a single process without a name."""
    if group is not None:
        readable = re.sub(r"[^A-Za-z0-9_.-]", "_", group)[:40]
        return f"named-{readable}-{hashlib.sha256(f'{project}|{group}'.encode()).hexdigest()[:12]}"
    if owner is None:
        return None
    identity = "|".join((project, str(owner), start_time(owner), _pid_namespace()))
    return f"{owner}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def open_group(name: str, owner: int | None, bases: list[Path]) -> Path:
    """Make the group's folder in the first base that can be used. Errors: `Unusable` with every reason."""
    if not HAS_LOCKS:
        raise Unusable("This system has no file locks (fcntl).")
    reasons = []
    for base in bases:
        try:
            parent = make_parent(bases, base, find_parent(base).name)
            folder = parent / name
            make_folder(folder)
            if owner is not None:
                _write_owner(folder, owner)
            with guard.contained("sweeping old groups"):
                sweep(parent, keep=name)
            return folder
        except OSError as error:
            reasons.append(f"{base}: {error}")
    raise Unusable("; ".join(reasons) or NO_PLACE)


def make_parent(bases: Sequence[Path], base: Path, name: str) -> Path:
    """Make the private folder `name` in `base`, and `base` itself where the settings name it. Errors: `OSError`."""
    if len(bases) == 1 and not base.exists():
        # Its parents are the operator's. Another process may make it at this moment.
        base.mkdir(mode=0o700, exist_ok=True)
    parent = base / name
    make_folder(parent)
    return parent


def _write_owner(folder: Path, owner: int) -> None:
    path = folder / _OWNER_FILE
    if path.exists():
        return
    temporary = folder / f"{_OWNER_FILE}.{os.getpid()}"
    try:
        descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{owner} {start_time(owner)} {_pid_namespace()}")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _idle_age_s(folder: Path) -> float:
    """Return the age in seconds of the last write at which a group is swept; infinity while its master lives."""
    if folder.name.startswith(BACKGROUND_PREFIX):
        return BACKGROUND_AGE_S
    try:
        pid, _, rest = (folder / _OWNER_FILE).read_text().partition(" ")
    except FileNotFoundError:
        # It died while it made the folder.
        return _SWEEP_AGE_S
    began, _, namespace = rest.partition(" ")
    if namespace != _pid_namespace():
        # The pids of another namespace (a container beside this one) mean nothing here; its locks do.
        return FOREIGN_AGE_S
    return math.inf if began and start_time(int(pid)) == began else _SWEEP_AGE_S


def is_idle(folder: Path, age_s: float) -> bool:
    """Return whether no process holds a slot and nothing was written for `age_s` s. Errors: `OSError`, `ValueError`."""
    written_at_s = folder.stat().st_mtime if age_s == _SWEEP_AGE_S else touched_at_s(folder)
    if time.time() - written_at_s < age_s:
        return False
    numbers = [int(found.stem) for found in folder.glob("*.lock") if found.stem.isdigit()]
    return not living_slots(folder, numbers)


def sweep(parent: Path, keep: str) -> list[str]:
    """Remove the folders of masters that are gone, or of another container and idle, and whose slots are all free.

    Return their names.

    A named group has no owner and is never swept.
    """
    removed = []
    for folder in parent.iterdir():
        if folder.name == keep or folder.name.startswith("named-"):
            continue
        try:
            check_folder(folder)
            age_s = _idle_age_s(folder)
            if age_s == math.inf or not is_idle(folder, age_s):
                continue
        except (OSError, ValueError):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder.name)
    return removed
