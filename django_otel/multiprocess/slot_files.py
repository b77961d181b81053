"""Open files of the slot that this process holds, and their memory map."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

from django_otel.base.private_files import Unusable, open_file
from django_otel.multiprocess.format import (
    HEADER_BYTES,
    HEADER_CELLS,
    MAX_CELLS_BYTES,
    MAX_SLOTS,
    SEGMENT_BYTES,
    SEGMENT_CELLS,
)
from django_otel.multiprocess.lease import Lease, lock_exclusively


class SlotFiles:
    """The lease of a slot, its two open files and the mapped segments of the one with the cells.

    `cells` and `keys` are file descriptors. Errors of the constructor:
    `OSError`, among them `Unusable`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cells = self.keys = -1
        self._segments: list[memoryview[float]] = []
        self._maps: list[mmap.mmap] = []
        self.lease = self._take(folder)

    def path(self, suffix: str) -> Path:
        """Return the file of this slot with that suffix."""
        return self._folder / f"{self.lease.number}.{suffix}"

    def _take(self, folder: Path) -> Lease:
        """The lowest free slot whose files are, or can be made, our own."""
        first = 0
        while True:
            lease = Lease(folder, first)
            try:
                for suffix in ("cells", "keys"):
                    path = folder / f"{lease.number}.{suffix}"
                    if path.is_symlink() or (path.exists() and not path.is_file()):
                        path.unlink()
                self.cells = open_file(folder / f"{lease.number}.cells", os.O_RDWR | os.O_CREAT)
                # A clean-up may have removed the lock of a process that lives.
                lock_exclusively(self.cells)
                self.keys = open_file(folder / f"{lease.number}.keys", os.O_RDWR | os.O_CREAT)
                return lease
            except OSError as error:
                self._close_files()
                lease.close()
                is_this_slot = isinstance(error, Unusable | BlockingIOError | IsADirectoryError | PermissionError)
                if not is_this_slot or lease.number + 1 >= MAX_SLOTS:
                    raise
                first = lease.number + 1
            except BaseException:
                self._close_files()
                lease.close()
                raise

    def replace(self) -> None:
        """Replace foreign files by new ones. Foreign files are not truncated: another process may have them mapped."""
        self._close_files()
        for suffix in ("keys", "cells"):
            self.path(suffix).unlink(missing_ok=True)
        self.cells = open_file(self.path("cells"), os.O_RDWR | os.O_CREAT)
        lock_exclusively(self.cells)
        self.keys = open_file(self.path("keys"), os.O_RDWR | os.O_CREAT)

    def reserve(self, size: int) -> None:
        """Make the file that large for certain: a full disk is an error here and not a bus error in a request."""
        if size > MAX_CELLS_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        here = os.fstat(self.cells).st_size
        if here >= size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.cells, here, size - here)
        else:  # macOS
            os.ftruncate(self.cells, size)

    def locate(self, base: int) -> tuple[memoryview[float], int]:
        """The view and the index in it of the cell number `base` of the file."""
        segment, index = divmod(base - HEADER_CELLS, SEGMENT_CELLS)
        while len(self._segments) <= segment:
            offset = HEADER_BYTES + len(self._segments) * SEGMENT_BYTES
            self.reserve(offset + SEGMENT_BYTES)
            mapped = mmap.mmap(self.cells, SEGMENT_BYTES, offset=offset)
            self._maps.append(mapped)
            self._segments.append(memoryview(mapped).cast("d"))
        return self._segments[segment], index

    def mapped_bytes(self) -> int:
        """Return how much of the cells file is mapped, in bytes."""
        return HEADER_BYTES + len(self._segments) * SEGMENT_BYTES

    def is_intact(self) -> bool:
        """Return whether the files are still where others look for them."""
        try:
            here, there = os.fstat(self.cells), self.path("cells").lstat()
            keys_here, keys_there = os.fstat(self.keys), self.path("keys").lstat()
        except OSError:
            return False
        return here.st_ino == there.st_ino and keys_here.st_ino == keys_there.st_ino

    def close(self) -> None:
        """Close the files and give up the lease; mapped views stay valid as long as a series uses them."""
        self._close_files()
        self.lease.close()

    def _close_files(self) -> None:
        descriptors = (self.cells, self.keys)
        self.cells = self.keys = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
