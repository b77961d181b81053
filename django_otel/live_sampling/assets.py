"""Static files of our admin pages, even if the storage's manifest does not list them yet."""

from __future__ import annotations

from django.templatetags.static import PrefixNode, static
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_otel.base import frozen

#: Everything our pages load.
FILES = tuple(
    f"django_otel/{name}" for name in ("admin.css", "sampling.js", "console.css", "console.js", "failure.css")
)


def static_address(path: str) -> str:
    """The address of a static file; its plain one where the manifest does not list it."""
    try:
        return static(path)
    except ValueError:
        # ManifestStaticFilesStorage before `collectstatic`.
        return f"{PrefixNode.handle_simple('STATIC_URL')}{path}"


def is_listed(path: str) -> bool:
    """Return whether the storage of static files knows the file."""
    try:
        static(path)
    except ValueError:
        return False
    return True


@frozen.record
class Stylesheet:
    """A stylesheet of a form's or an admin's media."""

    path: str

    def __html__(self) -> SafeString:
        return format_html('<link href="{}" media="all" rel="stylesheet">', static_address(self.path))


@frozen.record
class Script:
    """A script of a form's or an admin's media."""

    path: str

    def __html__(self) -> SafeString:
        return format_html('<script src="{}"></script>', static_address(self.path))
