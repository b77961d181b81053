"""`manage.py otel`: shows and tests the configuration, and lists metrics and stored traces."""

from __future__ import annotations

import argparse
import contextlib
import functools
import ipaddress
import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandParser
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext, pgettext

from django_otel import conf, runtime, views
from django_otel.base.text import printable, printable_json
from django_otel.config.schema import SECRET_KEYS, Config, ConfigError
from django_otel.export.exporters import OTLP_KINDS
from django_otel.live_sampling import command, follower, log_level_command, policy_rows
from django_otel.metrics import catalogue
from django_otel.multiprocess import discovery
from django_otel.operations import collect, doctor, groups, mcp_server, surroundings, terminal, variables
from django_otel.operations import serve as serving
from django_otel.operations.monitoring import command as monitoring
from django_otel.operations.serve import Unavailable
from django_otel.redaction.keys import REDACTED
from django_otel.redaction.scrub import Scrubber

OK = 0
NOT_WORKING = 1
BAD_CONFIGURATION = 3


def _exit_codes() -> str:
    text = gettext(
        "Exit codes: 0 success; 1 something does not work (doctor, send-test, serve) or does not exist "
        "(folder); 2 the command line is wrong; 3 settings.OTEL is invalid, nothing was tested."
    )
    return "\n".join(textwrap.wrap(text, 110))


class Command(BaseCommand):
    # It is there to say what is wrong, so it must run when the checks fail.
    requires_system_checks: list[str] = []
    requires_migrations_checks = False

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: object) -> CommandParser:
        self.help = gettext("Shows and tests the configuration of django_otel.")
        kwargs.setdefault("epilog", _exit_codes())
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        self._parser = parser
        commands = parser.add_subparsers(dest="subcommand", metavar="subcommand")

        _add_subcommands(commands)
        monitoring.add_arguments(commands)
        _add_common_options(parser)

    def handle(self, *args: object, subcommand: str | None, **options: Any) -> None:
        code = OK
        if subcommand == "catalogue":
            self._catalogue(options["format"])
        elif subcommand is not None:
            code = self._with_config(subcommand, options)
        else:
            self._parser.print_help(self.stdout)
        if code != OK:
            self._exit(code)

    def _exit(self, code: int) -> NoReturn:
        self.stdout.flush()
        sys.exit(code)

    # --- config ---

    def _config(self, config: Config, form: str, all_variables: bool) -> int:
        values, sources = config.flat(), dict(config.sources)
        for dotted, (value, why) in find_effective(config).items():
            values[dotted], sources[dotted] = value, f"{sources[dotted]} ({why})"
        values = {dotted: mask(dotted, value) for dotted, value in values.items()}
        admin_ratio = find_admin_ratio(config)
        if admin_ratio is not None:
            values["SAMPLING.RATIO"], sources["SAMPLING.RATIO"] = admin_ratio, "admin"
        states = variables.list_states(config, os.environ, all_variables=all_variables)
        if form == "json":
            shown = {dotted: {"value": value, "source": sources[dotted]} for dotted, value in values.items()}
            self._write_json({"settings": shown, "variables": states, "ignored": list(config.warnings)})
            return OK
        if not all_variables:
            self._write_table(
                (gettext("key"), gettext("value"), gettext("source")),
                [(key, _show(value), sources[key]) for key, value in values.items()],
            )
        if states:
            self.stdout.write("" if all_variables else "\n", ending="")
            self._write_table(
                (gettext("state"), gettext("variable"), gettext("effect")),
                [(variables.say_state(name, found["state"]), name, found["effect"]) for name, found in states.items()],
            )
        for warning in config.warnings:
            self.stdout.write(f"\n{printable(warning)}")
        return OK

    def _read_config(self, form: str = "text") -> Config | None:
        """The configuration; None after its problems were printed."""
        try:
            return conf.get_config()
        except ConfigError as error:
            if form == "json":
                problems = [{"id": problem.id, "message": problem.message} for problem in error.problems]
                self._write_json({"problems": problems})
            else:
                self.stdout.write(gettext("settings.OTEL is invalid; django_otel runs without telemetry:") + "\n")
                for problem in error.problems:
                    self._write_wrapped(f"{problem.message} ({problem.id})", "  ")
            return None

    def _with_config(self, name: str, options: dict[str, Any]) -> int:
        """Run a subcommand that needs the configuration; its exit code, or that of a configuration that is faulty."""
        form = options.get("format", "text")
        config = self._read_config(form)
        if config is None:
            return BAD_CONFIGURATION
        write = self.stdout.write
        if name == "config":
            return self._config(config, form, options["variables"])
        if name == "doctor":
            return self._doctor(config, options["timeout"], form)
        if name == "send-test":
            return self._send_test(config, options["timeout"])
        if name == "sampling":
            return command.SamplingCommand(config, write).run(options)
        if name in monitoring.NAMES:
            return monitoring.run(name, options, config, write, self.stderr.write)
        if name == "serve":
            return self._serve(config, options["host"], options["port"], options["folder"])
        if name == "folder":
            return self._folder(config, options["folder"], form)
        return _use_store(self, name, options, config)

    # --- doctor ---

    def _doctor(self, config: Config, timeout_s: float, form: str) -> int:
        findings = doctor.examine(config, timeout_s)
        failures = [finding for finding in findings if finding.outcome == "failed"]
        warnings = [finding for finding in findings if finding.outcome == "warning"]
        if form == "json":
            self._write_json(
                {
                    "healthy": not failures,
                    "findings": [
                        {"subject": item.subject, "outcome": item.outcome, "text": item.text, "advice": item.advice}
                        for item in findings
                    ],
                }
            )
            return NOT_WORKING if failures else OK
        marks = {
            "ok": pgettext("a finding", "ok"),
            "note": "-",
            "warning": pgettext("a finding", "warning"),
            "failed": pgettext("a finding", "FAILED"),
        }
        width = max(map(len, marks.values()))
        indent = " " * (width + 1)
        for finding in findings:
            mark = marks[finding.outcome].ljust(width)
            styled = {"ok": self.style.SUCCESS, "failed": self.style.ERROR, "warning": self.style.WARNING}.get(
                finding.outcome, str
            )(mark)
            self._write_wrapped(f"{finding.title}: {finding.text}", indent, first=f"{styled} ")
            if finding.advice:
                self._write_wrapped(finding.advice, indent, first=indent)
        self.stdout.write("")
        self.stdout.write(_sum_up(len(failures), len(warnings)))
        return NOT_WORKING if failures else OK

    # --- send-test ---

    def _send_test(self, config: Config, timeout_s: float) -> int:
        if not config.traces.exporters:
            self.stdout.write(
                gettext(
                    'No trace exporter is configured. Set OTEL["TRACES"]["ENDPOINT"] or OTEL["TRACES"]["EXPORTERS"].'
                )
            )
            return NOT_WORKING
        trace_id, findings = doctor.send_test_trace(config, timeout_s)
        self.stdout.write(gettext("trace id: %(trace_id)s") % {"trace_id": trace_id})
        if config.trace_url:
            address = config.trace_url.replace("{trace_id}", trace_id)
            self.stdout.write(printable(gettext("look at:  %(address)s") % {"address": address}))
        for finding in findings:
            self._write_wrapped(f"{finding.title}: {finding.text} {finding.advice}".rstrip(), "  ", first="")
        return NOT_WORKING if any(finding.outcome == "failed" for finding in findings) else OK

    # --- catalogue ---

    def _catalogue(self, form: str) -> None:
        # Late: of the commands only this one needs it.
        from django_otel.operations.monitoring import catalogue_page

        metrics = catalogue.CATALOGUE.values()
        if form == "json":
            self._write_json(catalogue_page.build_catalogue_data(metrics))
            return
        self.stdout.write(catalogue_page.build_catalogue_markdown(metrics), ending="")

    # --- serve and folder ---

    def _serve(self, config: Config, host: str, port: int, folder: Path | None) -> int:
        if not config.enabled or "prometheus" not in config.metrics.exporters:
            self._write_wrapped(
                gettext(
                    'There is nothing to serve: OTEL["ENABLED"] is False or "prometheus" not in METRICS.EXPORTERS.'
                ),
                "",
            )
            return NOT_WORKING
        found = groups.GroupFinder(config, folder)
        try:
            self._write_wrapped(gettext("Serving the metrics in %(path)s.") % {"path": found.find()}, "")
        except Unavailable as error:
            if found.is_ambiguous or folder is not None:
                self._write_wrapped(str(error), "")
                return NOT_WORKING
            # The web server may be started later.
            self._write_wrapped(" ".join((str(error), gettext("Waiting for it."))), "")
        # A policy of the admin is followed here too, so that the page shows the effective ratio.
        follower.ensure_started()
        source = serving.Source(
            collect=found.collect,
            resource_attributes=runtime.current().resource.attributes,
            exemplars=config.metrics.exemplars,
            has_negotiated_names=config.metrics.negotiate_names,
            is_allowed=functools.partial(_is_allowed, config.metrics_view.token),
        )
        stop = serving.stop_on_signals()
        try:
            server = serving.ScrapeServer(host, port, source)
        except OSError as error:
            self._write_wrapped(_cannot_listen(host, port, error), "")
            return NOT_WORKING
        if not config.metrics_view.token and not _is_loopback(host):
            self._write_wrapped(
                gettext("Anyone who reaches %(host)s can read the page. Set %(setting)s, or listen on 127.0.0.1.")
                % {"host": host, "setting": 'OTEL["METRICS_VIEW"]["TOKEN"]'},
                "",
            )
        _say_listening(self, host, server.server_port, "/metrics")
        server.run_until(stop)
        return OK

    def _folder(self, config: Config, folder: Path | None, form: str) -> int:
        try:
            if folder is not None:
                found = [discovery.open_folder(folder)]
            else:
                found = [*discovery.find_groups(config), *groups.find_background(config)]
        except OSError as error:
            self._write_wrapped(str(error), "")
            return NOT_WORKING
        described = []
        for group in found:
            # It may be swept while we look.
            with contextlib.suppress(OSError):
                described.append((group, discovery.Outsider(group.folder).slots()))
        if form == "json":
            self._write_json({"groups": [groups.as_json(group, slots) for group, slots in described]})
            return OK if described else NOT_WORKING
        if not described:
            self._write_wrapped(groups.describe_none(config), "")
            return NOT_WORKING
        for group, slots in described:
            shown = groups.describe(group, slots)
            self.stdout.write(printable(shown.title))
            if shown.rows:
                self._write_table(shown.head, shown.rows)
            self._write_wrapped(shown.summary, "")
            self.stdout.write("")
        return OK

    # --- output ---

    def _write_json(self, content: object) -> None:
        self.stdout.write(printable_json(content))

    def _write_table(self, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        lines = [head, *(tuple(map(printable, row)) for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        # One long value must not push the source off the screen for all others.
        widths[1] = min(widths[1], 48)
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            self.stdout.write("  ".join(cells).rstrip())

    def _write_wrapped(self, text: str, indent: str, first: str | None = None) -> None:
        width = max(40, min(100, shutil.get_terminal_size().columns))
        lines = textwrap.wrap(
            printable(re.sub(r"\s+", " ", text)), width - len(indent), break_long_words=False, break_on_hyphens=False
        )
        for index, line in enumerate(lines):
            self.stdout.write((first if index == 0 and first is not None else indent) + line)


def _use_store(command: Command, name: str, options: dict[str, Any], config: Config) -> int:
    """Run a command over the console's store, and return the exit code."""
    if name == "logs" and options["action"] is not None:
        return log_level_command.LogLevelCommand(config, command.stdout.write).run(options)
    if name == "collect":
        return _collect(command, options["host"], options["port"], config)
    if name != "mcp":
        return terminal.run(name, options, config, command.stdout.write)
    try:
        mcp_server.run(config)
    except mcp_server.ExtraMissingError:
        # Standard output is the protocol's.
        command.stderr.write(gettext("Install the package first: %(command)s") % {"command": mcp_server.INSTALL})
        return NOT_WORKING
    return OK


def _collect(command: Command, host: str, port: int, config: Config) -> int:
    write = command.stdout.write
    try:
        store = terminal.open_store(config)
    except terminal.NoStoreError as problem:
        write(printable(str(problem)))
        return NOT_WORKING
    collector = collect.Collector(store, runtime.current().scrubber, config.database.statement != "off")
    if not _is_loopback(host):
        write(gettext("Anyone who reaches %(host)s can write into the store. Listen on 127.0.0.1.") % {"host": host})

    try:
        collect.serve(
            host, port, collector, serving.stop_on_signals(), functools.partial(_say_listening, command, host)
        )
    except OSError as error:
        write(_cannot_listen(host, port, error))
        return NOT_WORKING
    return OK


def _say_listening(command: Command, host: str, port: int, path: str = "") -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    command.stdout.write(gettext("Listening on %(address)s") % {"address": address})
    command.stdout.flush()


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    values = {"address": f"{host}:{port}", "reason": error.strerror or error}
    return gettext("Cannot listen on %(address)s: %(reason)s.") % values


def _sum_up(failures: int, warnings: int) -> str:
    """Return the last line of the doctor's report."""
    if failures:
        message = ngettext("%(count)d check failed.", "%(count)d checks failed.", failures)
        return message % {"count": failures}
    if warnings:
        message = ngettext("All is well, with %(count)d warning.", "All is well, with %(count)d warnings.", warnings)
        return message % {"count": warnings}
    return gettext("All is well.")


def _is_allowed(token: str | None, header: str) -> bool:
    if not token:
        return True
    request = HttpRequest()
    request.META["HTTP_AUTHORIZATION"] = header
    return views._has_token(request, token)  # noqa: SLF001 (shared with the checks and the parser)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(gettext("%(text)s is not a port from 0 to 65535") % {"text": repr(text)})
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:
        message = gettext("%(text)s is not a number of seconds above 0 and at most 600")
        raise argparse.ArgumentTypeError(message % {"text": repr(text)})
    return value


def find_effective(config: Config) -> dict[str, tuple[object, str]]:
    """Return effective values of settings that are None: value and reason, by dotted key."""
    found: dict[str, tuple[object, str]] = {}
    if config.console.enabled is None:
        debug = conf.is_debug()
        found["CONSOLE.ENABLED"] = (debug, gettext("DEBUG is on") if debug else gettext("DEBUG is off"))
    if config.console.path is None and conf.is_console_on(config):
        place, _ = surroundings.find_store(config)
        if place is not None:
            found["CONSOLE.PATH"] = (str(place), gettext("the folder in use"))
    if config.metrics.shared_dir is None and (folder := surroundings.find_shared_folder(config)) is not None:
        found["METRICS.SHARED_DIR"] = (str(folder), gettext("the folder in use"))
    for signal in ("TRACES", "METRICS", "LOGS"):
        part = getattr(config, signal.lower())
        kinds = [name for name in part.exporters if name in OTLP_KINDS]
        if part.endpoint is None and kinds:
            found[f"{signal}.ENDPOINT"] = (doctor.describe_endpoint(kinds[0], signal.lower(), config), kinds[0])
    for name in ("EVENT_ATTRIBUTES", "LINK_ATTRIBUTES"):
        if getattr(config.traces.limits, name.lower()) is None:
            found[f"TRACES.LIMITS.{name}"] = (
                config.traces.limits.attributes,
                gettext("as %(key)s") % {"key": "ATTRIBUTES"},
            )
    return found


def _add_timeout(parser: CommandParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help=gettext("time limit for each exporter (default 5)"),
    )


def _add_subcommands(commands: Any) -> None:
    config = commands.add_parser(
        "config", help=gettext("every setting, its value and where it came from; secrets masked")
    )
    config.add_argument("--format", choices=("text", "json"), default="text")
    config.add_argument(
        "--variables",
        action="store_true",
        help=gettext("every OTEL_* variable, what it sets and whether it is obeyed"),
    )

    examine = commands.add_parser(
        "doctor", help=gettext("send a span, a metric and a log record through every exporter and report problems")
    )
    _add_timeout(examine)
    examine.add_argument("--format", choices=("text", "json"), default="text")

    send = commands.add_parser("send-test", help=gettext("send one test trace and print its id and where to find it"))
    _add_timeout(send)

    command.add_arguments(commands)
    terminal.add_arguments(commands)
    logs = commands.add_parser("logs", help=gettext("log records that the console has stored; levels of loggers"))
    terminal.add_log_arguments(logs)
    log_level_command.add_arguments(logs.add_subparsers(dest="action", metavar="action"))
    receive = commands.add_parser(
        "collect", help=gettext("receive OTLP over HTTP from other services of this machine into the console's store")
    )
    receive.add_argument("--port", type=_port, default=4318, help=gettext("0 picks a free one and prints it"))
    receive.add_argument("--host", default="127.0.0.1", help=gettext("address to listen on (default 127.0.0.1)"))
    commands.add_parser(
        "mcp", help=gettext("serve the store to coding assistants over standard input and output (extra mcp)")
    )

    catalogue = commands.add_parser("catalogue", help=gettext("every metric this package emits"))
    catalogue.add_argument("--format", choices=("md", "json"), default="md")

    serve = commands.add_parser(
        "serve",
        help=gettext("answer /metrics for the web server's worker processes on a port of its own"),
        description=gettext(
            "Serves the metrics of this project's web server from a process of its own, so that /metrics need "
            "not be reachable on the public port. Run it on the same host (in a container: with the same "
            "SHARED_DIR), as the same user. METRICS_VIEW.TOKEN is required if it is set."
        ),
    )
    serve.add_argument("--port", type=_port, required=True, help=gettext("0 picks a free one and prints it"))
    serve.add_argument("--host", default="127.0.0.1", help=gettext("address to listen on (default 127.0.0.1)"))
    serve.add_argument("--folder", type=Path, help=gettext("the group's folder, if there are several"))

    folder = commands.add_parser("folder", help=gettext("the contents of the shared folder of the worker processes"))
    folder.add_argument("--folder", type=Path, help=gettext("only this group's folder"))
    folder.add_argument("--format", choices=("text", "json"), default="text")


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add Django's common options to every subcommand, where they override those before it."""
    for action in parser._actions:  # noqa: SLF001 (shared with the checks and the parser)
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 (shared with the checks and the parser)
            continue
        # It looks at the options of its subcommands, too: theirs are not abbreviations of its own (--for, --format).
        parser.allow_abbrev = False
        for subparser in set(action.choices.values()):
            group = subparser.add_argument_group(gettext("options of every command"))
            group.add_argument("-v", "--verbosity", type=int, choices=(0, 1, 2, 3), default=argparse.SUPPRESS)
            for name in ("--settings", "--pythonpath"):
                group.add_argument(name, default=argparse.SUPPRESS)
            for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
                group.add_argument(name, action="store_true", default=argparse.SUPPRESS)
            _add_common_options(subparser)


def find_admin_ratio(config: Config) -> float | None:
    """Return the ratio of the effective policy in the database; None if there is none or it cannot be read."""
    if not (config.enabled and config.sampling.live):
        return None
    with contextlib.suppress(Exception):
        policy = policy_rows.read_policy(policy_rows.policy_alias())
        if policy is not None and (policy.expires_at_s is None or policy.expires_at_s > time.time()):
            return policy.ratio
    return None


def mask(dotted: str, value: object) -> object:
    """Return a value in types of JSON, with secrets as "[redacted]"."""
    if dotted in SECRET_KEYS:
        if isinstance(value, Mapping):
            return dict.fromkeys(map(str, value), REDACTED)
        return REDACTED if value else value
    return _simplify(Scrubber(), dotted.rsplit(".", 1)[-1], value)


def _simplify(scrubber: Scrubber, key: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return scrubber.url(value) if "://" in value else scrubber.text(value)
    if isinstance(value, Mapping):
        return {
            str(name): REDACTED if scrubber.is_sensitive(str(name)) else _simplify(scrubber, str(name), content)
            for name, content in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_simplify(scrubber, key, item) for item in value]
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__name__)}"
    # Networks of TRUST_INBOUND and whatever a project hands to an instrumentor.
    with contextlib.suppress(Exception):
        return scrubber.text(str(value))
    return f"a {type(value).__name__}"


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
