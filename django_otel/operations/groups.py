"""Groups of worker processes that `manage.py otel serve` and `otel folder` show, and the reason if there is none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.utils.translation import gettext, ngettext

from django_otel import conf, runtime
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config
from django_otel.metrics.model import Family
from django_otel.multiprocess import discovery, lease, server_group
from django_otel.multiprocess.background import add_background, build_background_reader
from django_otel.operations import surroundings
from django_otel.operations.serve import Unavailable


def describe_none(config: Config) -> str:
    """Return a sentence that says why there may be no group."""
    if lease.HAS_LOCKS and (obstacle := surroundings.find_sharing_obstacle(config)):
        return describe_unshared(obstacle)
    bases = server_group.candidate_bases(config.metrics.shared_dir, config.surroundings)
    places = [str(server_group.find_parent(base)) for base in bases]
    message = gettext(
        "No worker process of this project has written metrics to %(places)s. Either none has answered a "
        "request yet, or the server is a single process (its own /metrics is complete; a METRICS.GROUP makes "
        "it share), or it runs as another user, in another container or with another SERVICE_NAME or "
        "METRICS.SHARED_DIR."
    )
    return message % {"places": ", ".join(places)}


def describe_unshared(reason: str) -> str:
    """Return a sentence that says why there can be no group."""
    message = gettext(
        "Worker processes cannot share their metrics (%(reason)s); /metrics shows those of the process that answers."
    )
    return message % {"reason": reason}


class GroupFinder:
    """Return the group that `serve` shows: the named one, else the only living one. A new master is found again."""

    def __init__(self, config: Config, folder: Path | None) -> None:
        self._config = config
        self._named = folder
        self._outsider: discovery.Outsider | None = None
        self._lock = threading.Lock()
        is_read = folder is None and config.metrics.group is None
        self._background = (
            build_background_reader(conf.project_identity(), config.metrics.shared_dir) if is_read else None
        )
        self.is_ambiguous = False

    def find(self) -> Path:
        """The folder. Errors: `Unavailable`."""
        self.is_ambiguous = False
        if self._named is not None:
            try:
                return discovery.open_folder(self._named).folder
            except OSError as error:
                raise Unavailable(_unreadable(self._named, error)) from error
        try:
            found = discovery.find_groups(self._config)
        except OSError as error:
            raise Unavailable(str(error)) from error
        if self._config.metrics.group is None:
            # The numbers of a dead master's group belong to no server; a named group's numbers outlive its processes.
            found = [group for group in found if group.is_living]
        if self._outsider is not None and any(group.folder == self._outsider.folder for group in found):
            return self._outsider.folder
        if not found:
            raise Unavailable(describe_none(self._config))
        if len(found) > 1:
            self.is_ambiguous = True
            listed = ", ".join(str(group.folder) for group in found)
            message = gettext(
                "Several servers of this project run here: %(folders)s. Choose one with --folder, or give each "
                'a METRICS.GROUP ("manage.py otel folder" shows their contents).'
            )
            raise Unavailable(message % {"folders": listed})
        return found[0].folder

    def collect(self) -> list[Family]:
        """The group's families, and the observable gauges as this process reads them. Errors: `Unavailable`."""
        with self._lock:
            background = self._background.collect() if self._background is not None else []
            try:
                folder = self.find()
            except Unavailable:
                if not background or self.is_ambiguous:
                    raise
                # Task workers alone run here.
                return _present([*background, *_read_observed()])
            if self._outsider is None or self._outsider.folder != folder:
                self._outsider = discovery.Outsider(folder, shows_processes=self._config.runtime)
            outsider = self._outsider
            try:
                families = outsider.collect()
            except OSError as error:
                raise Unavailable(_unreadable(folder, error)) from error
        return _present([*add_background(families, background), *_read_observed()])


def _present(families: list[Family]) -> list[Family]:
    """The families with the names and buckets of a scrape."""
    current = runtime.current()
    return current.present(current.narrow(families))


def _read_observed() -> list[Family]:
    with suppress_instrumentation():
        return runtime.store.observed()


def find_background(config: Config) -> list[discovery.Group]:
    """Return the group of this project's task workers on this host, if there is one."""
    if config.metrics.group is not None or not lease.HAS_LOCKS:
        return []
    found = []
    for folder in build_background_reader(conf.project_identity(), config.metrics.shared_dir).folders:
        with contextlib.suppress(OSError):
            found.append(discovery.open_folder(folder))
    return found


def _unreadable(folder: Path, error: OSError) -> str:
    return gettext("%(path)s cannot be read: %(reason)s") % {"path": folder, "reason": error}


def as_json(group: discovery.Group, slots: Iterable[discovery.Slot]) -> dict[str, object]:
    """Return a group and its slots as values of JSON."""
    return {
        "folder": str(group.folder),
        "living": group.is_living,
        "owner_pid": group.owner_pid,
        "slots": [
            {
                "slot": slot.number,
                "living": slot.is_living,
                "pid": slot.pid,
                "joined_at": slot.joined_at_s,
                "size_bytes": slot.size_bytes,
                "series": slot.series,
                "instruments": sorted(slot.instruments),
            }
            for slot in slots
        ],
    }


@dataclass(frozen=True, slots=True)
class Description:
    """A group in words: a title, a table with its head, and a summary."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    summary: str


def describe(group: discovery.Group, slots: Sequence[discovery.Slot]) -> Description:
    """Return a group and its slots in words."""
    notes = [gettext("living") if group.is_living else gettext("all its processes have ended")]
    if group.owner_pid is not None:
        notes.append(gettext("master %(pid)s") % {"pid": group.owner_pid})
    elif group.folder.name.startswith(server_group.BACKGROUND_PREFIX):
        notes.append(gettext("task workers"))
    if group.is_foreign:
        notes.append(gettext("possibly another project's"))
    rows = [
        (
            str(slot.number),
            gettext("living") if slot.is_living else gettext("free"),
            str(slot.pid or "-"),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(slot.joined_at_s)) if slot.joined_at_s else "-",
            f"{slot.size_bytes / 1024:.0f} KiB",
            str(slot.series),
            str(len(slot.instruments)),
        )
        for slot in slots
    ]
    head = (
        gettext("slot"), gettext("state"), gettext("pid"), gettext("joined"), gettext("size"),
        gettext("series"), gettext("instruments"),
    )  # fmt: skip
    instruments = set().union(*(slot.instruments for slot in slots))
    slots_said = ngettext(
        "%(count)d slot, %(living)d held by a living process, %(size)s KiB.",
        "%(count)d slots, %(living)d held by a living process, %(size)s KiB.",
        len(slots),
    ) % {
        "count": len(slots),
        "living": sum(slot.is_living for slot in slots),
        "size": f"{sum(slot.size_bytes for slot in slots) / 1024:.0f}",
    }
    instruments_said = ngettext(
        "%(count)d instrument: %(names)s.", "%(count)d instruments: %(names)s.", len(instruments)
    ) % {"count": len(instruments), "names": ", ".join(sorted(instruments))}
    return Description(
        title=f"{group.folder} ({', '.join(notes)})",
        head=head,
        rows=rows,
        summary=" ".join((slots_said, instruments_said if instruments else gettext("No instruments."))),
    )
