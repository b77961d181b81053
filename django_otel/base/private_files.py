"""Folders and files that belong to this user alone, in places where other users may write."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from django_otel.base.sentences import Sentence, gettext_noop


class Unusable(OSError):  # noqa: N818 (an answer, not a fault)
    """The shared folder cannot be used; the text says which and why."""


def check_folder(path: Path) -> None:
    """Refuse a folder that others could write to. Errors: `Unusable`."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(
            Sentence(
                gettext_noop("%(path)s is a link or not a folder; expected a folder that belongs to this user."),
                path=path,
            )
        )
    if status.st_uid != os.geteuid():
        text = gettext_noop("%(path)s belongs to user %(user)s; expected user %(own)s.")
        raise Unusable(Sentence(text, path=path, user=status.st_uid, own=os.geteuid()))
    if status.st_mode & 0o077:
        text = gettext_noop("%(path)s has mode %(mode)s; expected 700.")
        raise Unusable(Sentence(text, path=path, mode=f"{stat.S_IMODE(status.st_mode):o}"))


def make_folder(path: Path) -> None:
    """Make a private folder, or check the one that is there. Errors: `Unusable`, `OSError`."""
    create_folder(path)
    check_folder(path)


def create_folder(path: Path) -> None:
    """Create a folder of mode 0700; one that exists stays as it is. Errors: `OSError`."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    # At any umask: one that takes the owner's own rights away would lock the other processes out.
    path.chmod(0o700)


def _not_a_file(path: Path) -> Unusable:
    return Unusable(f"{path} is a link or not a regular file; expected a file that belongs to this user.")


def open_file(path: Path, flags: int) -> int:
    """Open a regular file of our own, never through a link. Errors: `OSError`, `Unusable` for anything else."""
    try:
        # Not blocking: a pipe of that name would be waited for.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _not_a_file(path) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise _not_a_file(path)
    if flags & os.O_CREAT and stat.S_IMODE(status.st_mode) != 0o600:
        # An umask that takes the owner's own rights away would lock the other processes out.
        os.fchmod(descriptor, 0o600)
    return descriptor


def temporary_folder() -> str:
    """Return the system's folder for temporary files; "" where none can be written to."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return ""


def touched_at_s(folder: Path) -> float:
    """Return when a folder or a file in it was written last, in seconds since the Unix epoch. Errors: `OSError`."""
    return max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
