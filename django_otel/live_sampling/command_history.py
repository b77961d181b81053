"""Changes from the command line in the admin's history."""

from __future__ import annotations

import getpass
import socket
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import Error as DatabaseFault
from django.db import models, router, transaction
from django.utils.translation import gettext

from django_otel.base.frozen import record


class RefusedError(Exception):
    """Request that cannot be fulfilled; the text says why."""


@record
class Author:
    """The author of a change; `row` is their user, None where there is none of that name or no admin."""

    name: str
    row: Any


def find_user(name: str | None) -> Author:
    """Return the author of a change: the user of that name, or of the login. Errors: `RefusedError` for no user."""
    wanted = name or login()
    if not apps.is_installed("django.contrib.admin"):
        return Author(wanted, None)
    model = get_user_model()
    row = model._default_manager.filter(**{model.USERNAME_FIELD: wanted}).first() if wanted else None
    if row is None and name:
        raise RefusedError(gettext("There is no user %(name)s; nothing was changed.") % {"name": repr(name)})
    return Author(wanted, row)


def write(author: Author, row: models.Model, message: str, *, command: str, is_new: bool = False) -> str:
    """Write a change of `row` into the admin's history where there is one; return a sentence about it."""
    if not apps.is_installed("django.contrib.admin"):
        return ""
    from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
    from django.contrib.contenttypes.models import ContentType

    if author.row is None:
        said = gettext("Not in the admin's history: there is no user %(name)s. Name one with --user.")
        return said % {"name": repr(author.name)}
    try:
        with transaction.atomic(using=router.db_for_write(LogEntry)):
            LogEntry.objects.create(
                user_id=author.row.pk,
                content_type_id=ContentType.objects.get_for_model(type(row)).pk,
                object_id=str(row.pk),
                object_repr=str(row)[:200],
                action_flag=ADDITION if is_new else CHANGE,
                change_message=gettext("%(changes)s (manage.py otel %(command)s on %(host)s)")
                % {"changes": message, "command": command, "host": socket.gethostname()},
            )
    except DatabaseFault as fault:
        said = gettext("Not in the admin's history: it could not be written (%(error)s).")
        return said % {"error": type(fault).__name__}
    return gettext("In the admin's history as a change of %(name)s.") % {"name": author.name}


def login() -> str:
    """Return the name of the user of this process; "" where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        # No name for this user id, as in some containers.
        return ""
