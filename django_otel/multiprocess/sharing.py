"""This process's part in its group: its slot, its snapshot, and the scrape over all slots.

When the folder cannot be used, is deleted or is full, numbers stay in plain
memory and the page says so; every second this process looks whether it can
share again.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from django_otel.base import forks, guard
from django_otel.base.private_files import Unusable
from django_otel.config.schema import Config
from django_otel.metrics.catalogue import build_family
from django_otel.metrics.cells import Memory
from django_otel.metrics.instruments import Counter
from django_otel.metrics.model import Family, Point
from django_otel.metrics.store import CellStore
from django_otel.multiprocess import server_group
from django_otel.multiprocess.lease import living_slots
from django_otel.multiprocess.memory import SharedMemory
from django_otel.multiprocess.processes import (
    Member,
    add_cpu_times,
    build_key,
    describe_processes,
    own_member,
    read_usage,
)

if TYPE_CHECKING:
    from django_otel.multiprocess.reader import Reader

_TICK_S = 1.0
#: A killed process loses at most so many seconds of its CPU time.
_TICKS_PER_CPU_TIME = 10
#: So that a forked child can close what it inherited, at any fork.
_all: weakref.WeakSet[Sharing] = weakref.WeakSet()


def is_shown(config: Config) -> bool:
    """Return whether a page shows the numbers of this process, so that others have to read them."""
    return bool({"prometheus", "prometheus-registry"} & set(config.metrics.exporters))


def start_sharing(
    config: Config,
    store: CellStore,
    collect_sdk: Callable[[], list[Family]],
    configured_pid: int,
    background: str | None = None,
) -> Sharing | None:
    """Join the group's folder; None for a server of a single process, where there is nothing to share.

    `background` is the name of the group of task workers where this process is one of them.
    """
    if not is_shown(config):
        return None
    owner: int | None = None
    name: str | None = background
    if name is not None:
        from django_otel.multiprocess.background import background_bases

        bases = background_bases(config.metrics.shared_dir)
    else:
        if config.metrics.group is None:
            owner = server_group.owner_pid(configured_pid, config.surroundings)
        name = server_group.build_group_name(config.service_name or "", config.metrics.group, owner)
        bases = server_group.candidate_bases(config.metrics.shared_dir, config.surroundings)
    if name is None:
        return None
    shows_processes = config.runtime and background is None
    for known in list(_all):
        if known.serves(name, bases, store):
            # New settings, same folder: in another slot, what was counted would be there twice.
            known.shows_processes = shows_processes
            return known
        known.stop()
    sharing = Sharing(name, owner, bases, store, collect_sdk)
    sharing.shows_processes = shows_processes
    sharing.join()
    sharing.start()
    return sharing


class Sharing:
    """The slot of this process and the merge of all slots. One per process."""

    def __init__(
        self, name: str, owner: int | None, bases: list[Path], store: CellStore, collect_sdk: Callable[[], list[Family]]
    ) -> None:
        self._name = name
        self._owner = owner
        self._bases = bases
        self._store = store
        self._collect_sdk = collect_sdk
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._written: object = None
        #: SDK metrics of the dead process that had this slot before.
        self._inherited: list[Family] = []
        self.memory: SharedMemory | None = None
        #: The group's folder; None while it cannot be used.
        self.folder: Path | None = None
        self._reader: Reader | None = None
        #: Whether the metrics of the processes themselves are wanted (RUNTIME).
        self.shows_processes = False
        #: Why numbers are not shared now; empty when they are.
        self.problem = ""
        _all.add(self)

    @property
    def reader(self) -> Reader | None:
        """Reader of all slots of the folder, made when it is first needed; None while the folder cannot be used."""
        folder, reader = self.folder, self._reader
        if folder is not None and (reader is None or reader.folder is not folder):
            from django_otel.multiprocess.reader import Reader

            reader = self._reader = Reader(folder, self._count_skipped)
        return reader if folder is not None else None

    def join(self) -> bool:
        """Take a slot and move this process's numbers into it; whether that went well."""
        try:
            folder = server_group.open_group(self._name, self._owner, self._bases)
            memory = SharedMemory(folder)
        except OSError as error:
            self._fall_back(error)
            return False
        except Exception as error:
            guard.report("taking a slot of the shared folder", error)
            self._fall_back(Unusable(f"{type(error).__name__}: {error}"))
            return False
        self._inherited, self._written = memory.inherited, None
        self._store.move(memory)
        self.memory, self.folder, self.problem = memory, folder, ""
        for reason in memory.problems:
            self._count_skipped(reason)
        return True

    def _fall_back(self, error: OSError) -> None:
        kind = "" if isinstance(error, Unusable) else f"{type(error).__name__}: "
        self.problem = f"{kind}{error}"
        self.memory = self.folder = self._reader = None
        guard.warn_once(
            f"sharing {self.problem[:60]}",
            "django_otel: this process cannot share its numbers with the other workers (%s); "
            "/metrics shows the process that answers. Set METRICS.SHARED_DIR to a folder it may write to.",
            self.problem,
        )

    def start(self) -> None:
        """Start the thread that keeps the snapshot current and the folder in view."""
        self._thread = threading.Thread(target=self._run, name="django_otel-shared", daemon=True)
        self._thread.start()

    def serves(self, name: str, bases: list[Path], store: CellStore) -> bool:
        """Return whether this is how the process already shares that store's numbers in that folder."""
        return (
            self._pid == os.getpid() and not self._stop.is_set()
            and (self._name, self._bases) == (name, bases) and self._store is store
        )  # fmt: skip

    def stop(self) -> None:
        """Leave the group; the counts of this process stay."""
        self._stop.set()
        self.abandon()

    def abandon(self) -> None:
        """Close what belongs to this slot without unlocking it (in a forked child it is the parent's)."""
        self._lock = threading.Lock()
        memory = self.memory
        self.memory = self.folder = self._reader = None
        if memory is not None:
            memory.close()

    def _run(self) -> None:
        if not self._stop.wait(_TICK_S):
            with guard.contained("reading the shared folder"):
                # What merging imports later on: it is imported here, where a fork waits for it.
                with forks.importing.using():
                    from django_otel.metrics import merging  # noqa: F401 (for what follows)
                    from django_otel.multiprocess import reader, snapshot  # noqa: F401 (for what follows)
                # Dictionaries of other slots are parsed once: better here than in the first scrape.
                self.merge()
        ticks = 0
        while not self._stop.wait(_TICK_S):
            with guard.contained("keeping the shared folder"):
                self.tick()
            ticks += 1
            if ticks % _TICKS_PER_CPU_TIME == 0:
                with guard.contained("noting the CPU time"):
                    self.note_cpu_time()

    def tick(self) -> None:
        """Look after folder and snapshot once."""
        memory = self.memory
        if memory is None:
            self.join()
        elif not memory.is_intact():
            # Deleted while in use: the counts of this process continue in a new slot.
            self._store.move(Memory())
            memory.close()
            self.memory = None
            self.join()
        else:
            if not memory.lease.is_intact():
                memory.lease.renew()
            # Requests make series meanwhile.
            with self._store.lock:
                if memory.restore_size():
                    self._store.rebase()
            if memory.is_degraded:
                memory.is_degraded = False
                self._store.move(memory)
            # The definitions of this process may have been rolled back, and others answer the scrapes.
            reader = self.reader
            if reader is not None and self._claim(memory, reader):
                reader.merge()
        self.write_snapshot()

    # Snapshots.

    def _sdk_families(self) -> list[Family]:
        """This process's SDK instruments, on top of what its slot had before."""
        from django_otel.metrics.merging import merge_processes

        return merge_processes([(self._inherited, True), (self._collect_sdk(), True)])

    def write_snapshot(self) -> list[Family]:
        """Write this process's SDK instruments for the others, if anything changed; return them."""
        self._store.update()
        with self._lock:
            families = self._sdk_families()
            memory = self.memory
            if memory is None:
                return families
            # Points are replaced, not changed, so that values compare.
            content = [
                (family.name, [(point.attributes, repr(point.value)) for point in family.points]) for family in families
            ]
            if content and content != self._written:
                from django_otel.multiprocess.snapshot import write_snapshot

                try:
                    write_snapshot(memory.path("snap"), families)
                    self._written = content
                except OSError as error:
                    guard.warn_once("shared snapshot", "django_otel: the snapshot cannot be written (%s).", error)
            return families

    # The scrape.

    def collect(self) -> list[Family]:
        """Every family over all processes of the group, at this moment."""
        from django_otel.metrics.merging import merge_processes

        own_sdk = self.write_snapshot()
        memory, reader = self.memory, self.reader
        if memory is None or reader is None or not memory.is_intact():
            return [*self._store.collect(), *own_sdk, *self._state(is_shared=False), *self._describe([own_member(0.0)])]
        own = memory.lease.number
        others = list(reader.snapshots(except_slot=own))
        living = living_slots(reader.folder, [number for number, _ in others]) if others else set()
        parts = [(families, number in living) for number, families in others]
        sdk = merge_processes([*parts, (own_sdk, True)]) if parts else own_sdk
        merged = self.merge()
        if memory.is_degraded:
            self._degraded(merged)
        state = self._state(is_shared=not memory.is_degraded)
        return [*merged, *self._store.observed(), *sdk, *state, *self._describe(reader.members, reader.folder)]

    def _describe(self, members: Sequence[Member], folder: Path | None = None) -> list[Family]:
        """The metrics of the processes themselves."""
        return describe_processes(members, folder) if self.shows_processes else []

    def note_cpu_time(self) -> None:
        """Leave this process's CPU time to those that read the folder; at its end, and now and then before."""
        folder = self.folder
        if folder is None or not self.shows_processes:
            return
        member = own_member(0.0)
        usage = read_usage(member.pid, member.started_ticks)
        if usage is not None:
            add_cpu_times(folder, {build_key(member): (usage.user_s, usage.system_s)})

    def merge(self) -> list[Family]:
        """Our own instruments over all slots."""
        memory, reader = self.memory, self.reader
        if memory is None or reader is None:
            return []
        merged = reader.merge()
        return reader.merge() if self._claim(memory, reader) else merged

    def _claim(self, memory: SharedMemory, reader: Reader) -> bool:
        """Claim a definition that looks older than the one of the last merge."""
        with self._store.lock:
            return memory.claim_definitions(reader.newest_definitions())

    def _degraded(self, merged: list[Family]) -> None:
        """Growth has failed: add the series that only this process has, so that at least its own page shows them."""
        shown = {(family.name, point.attributes) for family in merged for point in family.points}
        for family in self._store.collect():
            for point in family.points:
                if (family.name, point.attributes) not in shown:
                    merged += [
                        Family(family.name, family.metric_type, family.unit, family.description, family.scope, [point])
                    ]

    def _state(self, *, is_shared: bool) -> list[Family]:
        return [build_family("django_otel.shared.active", [Point((), 1.0 if is_shared else 0.0)])]

    def _count_skipped(self, reason: str) -> None:
        skipped = self._store.catalogued("django_otel.shared.files.skipped")
        assert isinstance(skipped, Counter)
        skipped.add(1, {"django_otel.reason": reason})

    def slots(self) -> list[dict[str, object]]:
        """Return the contents of the folder, for operators: slot, whether it lives, size in bytes, series."""
        reader = self.reader
        if reader is None:
            return []
        numbers = reader.numbers()
        living = living_slots(reader.folder, numbers)
        found: list[dict[str, object]] = []
        for number in numbers:
            size_bytes = sum(
                path.stat().st_size for path in reader.folder.glob(f"{number}.*") if path.suffix != ".lock"
            )
            found.append({"slot": number, "is_living": number in living, "size_bytes": size_bytes})
        return found


def _abandon_all() -> None:
    for sharing in list(_all):
        with guard.contained("leaving the parent's slot after a fork"):
            sharing.abandon()


forks.register("multiprocess.sharing", _abandon_all)
