"""Writes docs/settings.md from the table of settings: `python docs/build_settings.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from django_otel.config.schema import Config, walk
from django_otel.config.variables import VARIABLES

PAGE = Path(__file__).with_name("settings.md")

_HEAD = """\
# Settings

Everything stands in one dict, `settings.OTEL`. A nested key such as `TRACES.ENDPOINT` is written
`OTEL = {"TRACES": {"ENDPOINT": ...}}`. Every key may be left out.

Precedence, highest first: the admin (the sampling ratio only), the `OTEL_*` environment variables of the
OpenTelemetry specification, `settings.OTEL`, the default. `manage.py otel config` prints every value and where it
came from. An unknown key, a wrong type or a value out of range is an error of `manage.py check`.

*This page is made from `django_otel/config/` by `python docs/build_settings.py`.*
"""

_VARIABLES_HEAD = """
## Environment variables

Every variable of the OpenTelemetry specification, of its Python packages and of the semantic conventions. A value that
does not fit is ignored and named by the check W013, as is a variable without an effect; nothing keeps the site from
starting. `OTEL_EXPORTER_OTLP_<SIGNAL>_*` stands above `OTEL_EXPORTER_OTLP_*`. `OTEL_TRACES_SAMPLER=traceidratio`
records all traces without an `OTEL_TRACES_SAMPLER_ARG` that fits. A `service.instance.id` of
`OTEL_RESOURCE_ATTRIBUTES` is kept and gets a suffix per process. `manage.py otel config` names the ones that are set
and says whether each is obeyed; `manage.py otel config --variables` lists all of them.
"""

_TAIL = """
## Instrumentors

`INSTRUMENT` takes the names of OpenTelemetry instrumentors, as their packages register them (entry points
`opentelemetry_instrumentor`): `httpx`, `sqlalchemy`, `fastapi`, `celery`, ... A name works once its package
(`opentelemetry-instrumentation-<name>`) and its library are installed; `manage.py otel doctor` says which are on, and
why the others are not. Naming them replaces the default list. A dict passes arguments:

```python
OTEL = {
    "INSTRUMENT": {
        "requests": {"excluded_urls": "internal/health", "request_hook": "shop.telemetry.name_partner"},
        "httpx": {},
    }
}
```

- A hook is a function or the dotted path of one. When it raises, the fault is logged once and the call goes on.
- `psycopg2`, `psycopg`, `redis`, `requests`, `httpx`, `urllib3` and `aiohttp-client` wait until the project imports the
  library, and import nothing themselves; every other instrumentor is loaded at the start.
- A library that another tool (`opentelemetry-instrument`) has instrumented is left alone.
- `"django"` is not accepted here: `OTelMiddleware` measures requests. With `REQUEST.SPANS = "instrumentor"` the official
  DjangoInstrumentor creates the span, with its own behaviour (no native async, `build_absolute_uri` on each request);
  metrics stay ours. `REQUEST.EXCLUDE` is passed on to it.
- Their spans are corrected before export: SQL without literals (`DATABASE.STATEMENT`), no query string unless
  `REQUEST.QUERY` is on, no documents found by a Redis search, short names for Redis pipelines. Arguments of statements
  are removed unless the instrumentor has the argument `capture_parameters`.
- `PROPAGATION.OUTBOUND_HOSTS` applies to requests, httpx, urllib3, urllib and aiohttp-client, redirects included. A
  pattern is a glob on the host (`*.internal`), or on host and port (`pay.internal:8443`). It does not apply to
  instrumentors of other clients (message queues, gRPC, cloud SDKs).
- FastAPI in the same ASGI application: create the Django application first (`get_asgi_application()`), then import
  FastAPI. Newer FastAPI releases measure themselves, even without the instrumentor. If Django is *mounted inside*
  FastAPI, FastAPI creates the server span, ours joins it, and both count the request; exclude Django's paths from
  FastAPI with `{"fastapi": {"excluded_urls": "..."}}`.
- A library that is newer than its instrumentor supports (SQLAlchemy 2.1 with instrumentor 0.66, for example) is not
  instrumented; check W012 names the supported versions.

## manage.py otel

| subcommand | what it does | exit code |
|---|---|---|
| `config [--variables] [--format json]` | every value and where it came from, and the `OTEL_*` variables that are set (with `--variables` all of them) and whether each is obeyed; secrets masked | 0, or 3 when `settings.OTEL` is invalid |
| `doctor [--timeout 5] [--format json]` | sends a span, a metric and a log record through every exporter, explains failures, and checks middleware, page, table, instrumentors, databases, caches, folders, console and versions | 0, 1 when something does not work, 3 |
| `send-test [--timeout 5]` | sends one test trace and prints its id and `TRACE_URL` | 0, 1, 3 |
| `logs level [LOGGER LEVEL] [--for 10m] [--end] [--note TEXT] [--user NAME]` | sets the level of a logger in every process temporarily, ends it, or lists the levels that are set ([logs.md](logs.md)) | 0, 1, 2 for an unknown level, 3 |
| `traces`, `trace ID`, `errors`, `slow`, `n-plus-one`, `logs` `[--since 15m] [--limit 20] [--format json]` | what the console has stored ([assistants.md](assistants.md)) | 0, 1 without a store or such a trace, 3 |
| `collect [--port 4318] [--host 127.0.0.1]` | receives OTLP over HTTP from other services of this machine into the console's store ([console.md](console.md#other-services)) | 0, 1, 3 |
| `mcp` | the same for coding assistants, over standard input and output (extra `mcp`) | 0, 1 without the package, 3 |
| `catalogue [--format md or json]` | every metric | 0 |

## System checks

| id | meaning |
|---|---|
| `E001` | unknown key |
| `E002` | wrong type or value out of range |
| `E003` | an import path that cannot be imported |
| `E004` | a package that the settings need is not installed |
| `E005` | a sampling rule could never match or makes no sense |
| `W001` | OTelMiddleware is not in MIDDLEWARE |
| `W002` | OTelMiddleware is not first |
| `W003` | requests are measured twice |
| `W004` | `/metrics` is open to all (`check --deploy`) |
| `W005` | the folder in which worker processes share their metrics cannot be used |
| `W006` | the sampling ratio is 1.0 and traces are exported (`check --deploy`) |
| `W007` | an environment variable overrides a setting |
| `W008` | live sampling without its table (`check --database default`) |
| `W009` | the instrumented driver is not the one in use |
| `W010` | a sensitive header is configured to be recorded; it is not |
| `W011` | live sampling has no effect: another tool's provider is in use |
| `W012` | an instrumentor in INSTRUMENT cannot be enabled |
| `W013` | an environment variable was ignored, or has no effect |
| `W014` | OTLP over HTTP goes to port 4317, which is that of gRPC |
| `W015` | the console's traces cannot be kept at CONSOLE.PATH |
| `W016` | OTEL is None |
| `W017` | `collectstatic` has not run since the app was installed: its admin pages have no styles |
"""  # noqa: E501 (rows of tables)


def build() -> str:
    """The whole page."""
    lines = [_HEAD, "| key | default | environment | meaning |", "|---|---|---|---|"]
    variables = _find_variables()
    for dotted, entry in walk(Config):
        environment = ", ".join(f"`{name}`" for name in variables.get(dotted, ()))
        meaning = str(entry.metadata["doc"]).replace("|", "\\|")
        lines.append(f"| `{dotted}` | `{_show_default(entry)}` | {environment} | {meaning} |")
    return "\n".join(lines) + "\n" + _build_variables() + _TAIL


def _show_default(entry: Field[Any]) -> str:
    value = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Mapping) and value and not any(value.values()):
        value = list(value)
    return str(value) if value is None or isinstance(value, bool) else json.dumps(value)


def _find_variables() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for variable in VARIABLES.values():
        for dotted in variable.keys:
            found.setdefault(dotted, []).append(variable.name)
    return found


def _build_variables() -> str:
    """The table of environment variables."""
    lines = [_VARIABLES_HEAD, "| variable | effect |", "|---|---|"]
    lines += [f"| `{variable.name}` | {variable.effect} |" for variable in VARIABLES.values()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(build())
