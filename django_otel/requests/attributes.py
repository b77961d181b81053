"""Attributes of a request span at its start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from django_otel.config.schema import Config
from django_otel.redaction.cutting import cut
from django_otel.requests.options import ObserverOptions, select_headers
from django_otel.requests.series import Attributes, RequestClass

if TYPE_CHECKING:
    from django_otel.requests.protocols import RequestLike

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_MAX_HOSTS = 256
_MAX_HOST_LENGTH = 255
#: Longest text of a header, in characters.
MAX_TEXT = 1024
#: Longest query string that is scrubbed and recorded, in characters.
_MAX_QUERY = 4096


def recorded_query(query: str | bytes, scrub_url: Callable[[str], str] | None) -> str:
    """Return a query string as `url.query` records it: at most `_MAX_QUERY` characters of it, scrubbed.

    Scrubbing takes time that grows with the length, and clients choose it. The cut is between two parameters, so
    that none leaves without the name or the end by which the scrubber knows it.
    """
    if len(query) > _MAX_QUERY:
        query = query[: _MAX_QUERY + 1]
    text = query if isinstance(query, str) else query.decode("latin-1")
    mark = ""
    if len(text) > _MAX_QUERY:
        text, mark = text.rpartition("&")[0], "&... [cut]"
    if scrub_url is not None and text:
        # The scrubber knows query strings by their question mark.
        text = scrub_url("?" + text)[1:]
    return (text + mark).removeprefix("&")


class StartAttributes:
    """Builds the attributes with which the spans of requests begin."""

    __slots__ = (
        "_forwarded_host", "_records_client", "_records_query", "_request_headers", "_scrub_text", "_scrub_url",
        "longest_path",
    )  # fmt: skip

    def __init__(self, config: Config, options: ObserverOptions) -> None:
        request, limits = config.request, config.traces.limits
        self._forwarded_host = options.forwarded_host
        self._scrub_url = options.scrub_url
        self._scrub_text = options.scrub_text
        self._records_query = request.query
        self._records_client = request.client_address
        self._request_headers = tuple(name.lower() for name in request.request_headers)
        is_plain = not (request.query or request.client_address or request.request_headers or request.response_headers)
        #: The longest path that needs no cutting; -1 when other values may, which are kept below `MAX_TEXT` otherwise.
        self.longest_path = (
            limits.attribute_length
            if is_plain
            and options.user_attributes is None
            and limits.attribute_length >= MAX_TEXT
            and limits.attributes >= 32
            else -1
        )

    def build(self, request_class: RequestClass, request: RequestLike, meta: Mapping[str, str]) -> Attributes:
        """The attributes of `request`, a dict of its own."""
        # Read raw: get_host() raises on a bad Host, and that is the application's to decide.
        host = (meta.get("HTTP_X_FORWARDED_HOST") if self._forwarded_host else None) or meta.get("HTTP_HOST")
        if type(host) is not str and host is not None:
            host = str(host)
        known = request_class.hosts.get(host)
        if known is not None:
            attributes = known.copy()
        elif host:
            attributes = _add_host(request_class, host, split_host(host)).copy()
        else:
            server = (str(meta.get("SERVER_NAME") or ""), str(meta.get("SERVER_PORT") or ""))
            attributes = _add_host(request_class, "", server)
        attributes["url.path"] = request.path
        if request_class.method == "_OTHER":
            attributes["http.request.method_original"] = self._cut(str(request.method))
        agent = meta.get("HTTP_USER_AGENT")
        if agent:
            agent = str(agent)
            attributes["user_agent.original"] = agent if len(agent) <= MAX_TEXT else self._cut(agent)
        if self._records_query and (query := meta.get("QUERY_STRING")):
            attributes["url.query"] = recorded_query(query, self._scrub_url)
        if self._records_client and meta.get("REMOTE_ADDR"):
            attributes["client.address"] = str(meta["REMOTE_ADDR"])
        if self._request_headers:
            attributes.update(
                select_headers("http.request.header.", self._request_headers, _meta_headers(meta), self._cut)
            )
        return attributes

    def _cut(self, text: str) -> str:
        return cut(text, MAX_TEXT, self._scrub_text)


def _add_host(request_class: RequestClass, host: str, name_and_port: tuple[str, str]) -> Attributes:
    name, port = name_and_port
    # A client leaves out the port of the scheme.
    port = port or _DEFAULT_PORTS[request_class.scheme]
    attributes = request_class.attributes.copy()
    if name:
        attributes["server.address"] = name[:MAX_TEXT]
    if name and port.isascii() and port.isdigit() and len(port) <= 5:
        attributes["server.port"] = int(port)
    # Clients choose it; a site rarely has more than a few names.
    if host and len(host) <= _MAX_HOST_LENGTH and len(request_class.hosts) < _MAX_HOSTS:
        request_class.hosts[host] = attributes
    return attributes


def split_host(host: str) -> tuple[str, str]:
    """Name and port of a Host header as it came, valid or not; IPv6 without its brackets."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.lstrip(":")
    name, separator, port = host.rpartition(":")
    if not separator or ":" in name:
        return host, ""
    return name, port


def _meta_headers(meta: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for name, value in meta.items():
        if isinstance(value, str):
            if name.startswith("HTTP_"):
                yield name[5:].lower().replace("_", "-"), value
            elif name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
                yield name.lower().replace("_", "-"), value
