"""Forms with more fields than DATA_UPLOAD_MAX_NUMBER_FIELDS allows: a policy with many rules.

Django's limit is for requests of strangers, and it holds before any view runs, because the CSRF check reads the
form. The views that are wrapped here are known to be called by signed-in staff only, so their limit is a higher one.
"""

from __future__ import annotations

import email.policy
import functools
from collections.abc import Callable
from email.parser import BytesParser
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent
from django.http import HttpRequest, HttpResponse, QueryDict
from django.http.request import UnreadablePostError
from django.utils.datastructures import MultiValueDict

from django_otel.sampling.policy import MAX_RULES

#: Fields of a rule's form, and those of everything else on the page, with some room.
_FIELDS_OF_A_RULE, _OTHER_FIELDS = 14, 60
MAX_FIELDS = MAX_RULES * _FIELDS_OF_A_RULE + _OTHER_FIELDS


def allow_many_fields(
    view: Callable[..., HttpResponse], may_send: Callable[[HttpRequest], bool]
) -> Callable[..., HttpResponse]:
    """Let users for whom `may_send` is true send this view up to `MAX_FIELDS` fields.

    `view` must check for CSRF itself, as what `AdminSite.admin_view` returns does: here the middleware must not, since
    it would read the form under Django's limit.
    """

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
        limit = settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
        if request.method == "POST" and limit is not None and limit < MAX_FIELDS and may_send(request):
            _read_form(request)
        return view(request, *args, **kwargs)

    wrapper.csrf_exempt = True  # type: ignore[attr-defined]
    return wrapper


def _read_form(request: Any) -> None:
    """Put the form where `request.POST` looks for it, unless that was read already or is of another kind."""
    if hasattr(request, "_post"):
        return
    try:
        if request.content_type == "multipart/form-data":
            fields = _parse_multipart(request)
        elif request.content_type == "application/x-www-form-urlencoded":
            fields = _parse_urlencoded(request)
        else:
            return
    except (UnreadablePostError, RequestDataTooBig, ValueError, LookupError):
        # Django's own reading says what is wrong.
        return
    request._post, request._files = fields, MultiValueDict()  # noqa: SLF001 (Django has no public name for it)


def _parse_urlencoded(request: HttpRequest) -> QueryDict:
    from urllib.parse import parse_qsl

    encoding = request.encoding or settings.DEFAULT_CHARSET
    text = request.body.decode("ascii", "replace")
    if text.count("&") >= MAX_FIELDS:
        raise TooManyFieldsSent(f"The form has more than {MAX_FIELDS} fields.")
    return _build(parse_qsl(text, keep_blank_values=True, encoding=encoding), encoding)


def _parse_multipart(request: HttpRequest) -> QueryDict:
    """The text fields of a multipart form: the pages have no field for a file."""
    encoding = request.encoding or settings.DEFAULT_CHARSET
    head = f"Content-Type: {request.META.get('CONTENT_TYPE', '')}\r\n\r\n".encode("latin-1")
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    parts: Any = message.get_payload() if message.is_multipart() else []
    if len(parts) > MAX_FIELDS:
        raise TooManyFieldsSent(f"The form has more than {MAX_FIELDS} fields.")
    pairs = []
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str) and part.get_filename() is None:
            pairs.append((name, part.get_payload(decode=True).decode(encoding, "replace")))
    return _build(pairs, encoding)


def _build(pairs: list[tuple[str, str]], encoding: str) -> QueryDict:
    found = QueryDict(mutable=True, encoding=encoding)
    for name, value in pairs:
        found.appendlist(name, value)
    found._mutable = False  # noqa: SLF001 (Django has no public name for it)
    return found
