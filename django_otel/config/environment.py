"""Settings from the environment, by the table of `variables`, and warnings for variables without effect."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from django_otel.config.schema import LOG_EXPORTERS, METRIC_EXPORTERS, PROPAGATORS, SPAN_EXPORTERS
from django_otel.config.signals import PROTOCOLS, SIGNALS, add_signal_path, find_protocol
from django_otel.config.validators import show
from django_otel.config.variables import VARIABLES, Variable, env_endpoint, header_pairs, key_values

#: Value and variable by dotted key.
Found = dict[str, tuple[object, str]]

#: Names of `OTEL_TRACES_SAMPLER` without "parentbased_".
_SAMPLERS = ("always_on", "always_off", "traceidratio")
#: Below it a duration (seconds) is likely meant in seconds, and written as such.
_SHORTEST_S = 0.1
_UNLIKELY = {"_TIMEOUT": "hardly an export takes so short", "_INTERVAL": "metrics are hardly exported so often"}
#: By the end of a variable's name: the entry points of packages that it may name, and what happens without.
_ENTRY_POINTS = {
    "OTEL_PYTHON_CONTEXT": ("opentelemetry_context", "contextvars_context is used"),
    "_CREDENTIAL_PROVIDER": ("opentelemetry_otlp_credential_provider", "exports fail"),
}
_CLIENT_CERTIFICATES = tuple(name for name in VARIABLES if name.endswith("_CLIENT_CERTIFICATE"))
#: Of a file of certificates; those of a system's authorities are about 250 kB.
_MOST_PEM_BYTES = 1 << 20
#: Variables of Kubernetes and Docker links for a service that is called "otel...".
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_|$)|_PORT(_\d+_(TCP|UDP).*)?$|_ENV_")


def read_environment(
    environ: Mapping[str, str], given: Mapping[str, object], warnings: list[str], is_propagator: Callable[[str], bool]
) -> Found:
    """Return {dotted key: (value, variable)} of the environment; variables without effect are added to `warnings`.

    `is_propagator(name)` says whether a format that is not built in is installed.
    """
    reader = _Reader(environ, given, warnings, is_propagator)
    for variable in VARIABLES.values():
        raw = environ.get(variable.name, "").strip()
        if raw:
            reader.read(variable, raw)
    reader.read_protocols()
    reader.check_together()
    warnings.extend(_find_misspelt(environ))
    return reader.found


class _Reader:
    def __init__(
        self,
        environ: Mapping[str, str],
        given: Mapping[str, object],
        warnings: list[str],
        is_propagator: Callable[[str], bool],
    ) -> None:
        self._environ = environ
        self._given = given
        self._warnings = warnings
        self._is_propagator = is_propagator
        self.found: Found = {}
        self._special: dict[str, Callable[[Variable, str], None]] = {
            "OTEL_RESOURCE_ATTRIBUTES": self._read_resource,
            "OTEL_PROPAGATORS": self._read_propagators,
            "OTEL_TRACES_SAMPLER": self._read_sampler,
            "OTEL_TRACES_SAMPLER_ARG": self._read_sampler_argument,
        }

    def read(self, variable: Variable, raw: str) -> None:
        """Take over the value of one variable, or say why not."""
        special = self._special.get(variable.name)
        if special is not None:
            special(variable, raw)
        elif variable.name.endswith("_HEADERS") and "OTLP" in variable.name:
            self._read_headers(variable, raw)
        elif variable.name.endswith("_ENDPOINT") and variable.keys:
            self._read_endpoint(variable, raw)
        elif variable.name.endswith("_EXPORTER") and variable.keys:
            self._read_exporters(variable, raw)
        elif variable.name.endswith("_PROTOCOL") and variable.keys:
            if raw.lower() not in PROTOCOLS:
                self._refuse(variable, raw)
        elif variable.convert is not None:
            self._convert(variable, raw)
        elif variable.name.endswith(("_CERTIFICATE", "_CLIENT_KEY")) and variable.reader:
            self._check_pem(variable, raw)
        elif variable.name.endswith(tuple(_ENTRY_POINTS)):
            self._read_entry_point(variable, raw)
        elif not variable.is_obeyed and raw.lower() not in variable.idle and not self._is_instrumentors(variable):
            self._warnings.append(f"The environment variable {variable.name} has no effect. {variable.advice}")

    def _check_pem(self, variable: Variable, raw: str) -> None:
        is_key = variable.name.endswith("_KEY")
        if fault := _find_pem_fault(raw, b"PRIVATE KEY-----" if is_key else b"CERTIFICATE-----"):
            self._warnings.append(f"The environment variable {variable.name} names {fault}; exports over TLS fail. "
                                  f"Expected is {variable.fits}.")  # fmt: skip
        elif is_key and not any(self._environ.get(name, "").strip() for name in _CLIENT_CERTIFICATES):
            self._warnings.append(f"The environment variable {variable.name} has no effect without "
                                  f"{variable.name.removesuffix('_KEY')}_CERTIFICATE.")  # fmt: skip

    def _read_entry_point(self, variable: Variable, raw: str) -> None:
        # Here, for the few who set one of these: it imports as much as the rest of our start-up.
        from importlib.metadata import entry_points

        group, effect = next(found for name, found in _ENTRY_POINTS.items() if variable.name.endswith(name))
        if not entry_points(group=group, name=raw):
            self._warnings.append(
                f"The environment variable {variable.name} names {show(raw)}, which no installed package offers; "
                f"{effect}. Expected is {variable.fits}."
            )

    def _is_instrumentors(self, variable: Variable) -> bool:
        """Return whether the official DjangoInstrumentor, which reads it, makes the request spans."""
        return variable.name.startswith("OTEL_PYTHON_DJANGO_") and self._given.get("REQUEST.SPANS") == "instrumentor"

    def _refuse(self, variable: Variable, raw: str, why: str = "") -> None:
        shown = "its value" if variable.is_secret else show(raw)
        why = why or f"{shown} does not fit; expected {variable.fits}."
        self._warnings.append(f"The environment variable {variable.name} is ignored: {why}")

    def _set(self, variable: Variable, value: object) -> None:
        for dotted in variable.keys:
            self.found[dotted] = (value, variable.name)

    def _convert(self, variable: Variable, raw: str) -> None:
        assert variable.convert is not None
        try:
            value = variable.convert(raw)
        except (ValueError, KeyError):
            self._refuse(variable, raw)
            return
        if value is None:
            # Asks for the default, such as OTEL_SDK_DISABLED=false.
            return
        self._set(variable, value)
        unlikely = _UNLIKELY.get(variable.name[variable.name.rfind("_") :])
        if unlikely is not None and isinstance(value, float) and value < _SHORTEST_S:
            self._warnings.append(
                f"The environment variable {variable.name} is {raw}, which is milliseconds: {unlikely}. For {raw} "
                f"seconds write {int(raw) * 1000}."
            )

    def _read_resource(self, variable: Variable, raw: str) -> None:
        pairs, bad = key_values(raw)
        if bad:
            # The specification has the whole value discarded.
            self._refuse(variable, raw, "one of its entries is not a name=value pair.")
            return
        for attribute, dotted in (
            ("service.name", "SERVICE_NAME"),
            ("service.version", "SERVICE_VERSION"),
            ("deployment.environment.name", "ENVIRONMENT"),
            ("deployment.environment", "ENVIRONMENT"),
        ):
            value = pairs.pop(attribute, "")
            if value and dotted not in self.found:
                self.found[dotted] = (value, variable.name)
        if pairs:
            base = self._given.get("RESOURCE", {})
            self.found["RESOURCE"] = ({**(base if isinstance(base, Mapping) else {}), **pairs}, variable.name)

    def _read_propagators(self, variable: Variable, raw: str) -> None:
        names = tuple(dict.fromkeys(part.strip().lower() for part in raw.split(",") if part.strip()))
        if "none" in names:
            self._set(variable, ("none",))
            return
        known = tuple(name for name in names if name in ("tracecontext", "baggage") or self._is_propagator(name))
        if missing := [show(name) for name in names if name not in known]:
            rest = f"the others ({', '.join(known)}) are used" if known else "the whole variable is ignored"
            self._warnings.append(
                f"The environment variable {variable.name} names {', '.join(missing)}, for which no package is "
                f"installed; {rest}. Known formats are {', '.join(PROPAGATORS)}."
            )
        if known:
            self._set(variable, known)

    def _read_sampler(self, variable: Variable, raw: str) -> None:
        name = raw.lower()
        kind = name.removeprefix("parentbased_")
        if kind not in _SAMPLERS:
            self._refuse(variable, raw, f"{show(raw)} is not known; expected always_on, always_off or traceidratio, "
                         "with or without parentbased_.")  # fmt: skip
            return
        if kind == "traceidratio":
            ratio = self._sampler_ratio()
            # A value that does not fit counts as none (specification, "OTEL_TRACES_SAMPLER_ARG"): all are recorded.
            self.found["SAMPLING.RATIO"] = (1.0, variable.name) if ratio is None else (ratio, "OTEL_TRACES_SAMPLER_ARG")
        else:
            self.found["SAMPLING.RATIO"] = (1.0 if kind == "always_on" else 0.0, variable.name)
        self.found["SAMPLING.PARENT"] = (name.startswith("parentbased_"), variable.name)

    def _sampler_ratio(self) -> float | None:
        """The argument of the sampler; None where there is none that fits."""
        try:
            ratio = float(self._environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
        except ValueError:
            return None
        return ratio if 0.0 <= ratio <= 1.0 else None

    def _read_sampler_argument(self, variable: Variable, raw: str) -> None:
        sampler = self._environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
        if sampler.removeprefix("parentbased_") != "traceidratio":
            self._refuse(variable, raw, "only OTEL_TRACES_SAMPLER=traceidratio and parentbased_traceidratio have an "
                         "argument.")  # fmt: skip
        elif self._sampler_ratio() is None:
            self._refuse(variable, raw, f"{show(raw)} does not fit; expected {variable.fits}. As without it, all "
                         "traces are recorded.")  # fmt: skip

    def _read_headers(self, variable: Variable, raw: str) -> None:
        pairs, bad = header_pairs(raw)
        if bad:
            entries = "entry is" if bad == 1 else "entries are"
            rest = f"the other {len(pairs)} are sent" if len(pairs) > 1 else "the other one is sent"
            self._warnings.append(
                f"{bad} {entries} left out of the environment variable {variable.name}, because expected are "
                f"{variable.fits}; {rest if pairs else 'none is sent'}."
            )
        if pairs:
            self._set(variable, pairs)

    def _read_endpoint(self, variable: Variable, raw: str) -> None:
        try:
            url = env_endpoint(raw)
        except ValueError:
            self._refuse(variable, raw)
            return
        is_base = variable.name == "OTEL_EXPORTER_OTLP_ENDPOINT"
        fitting = [dotted for dotted in variable.keys if "://" in url or self._is_grpc(dotted.partition(".")[0])]
        if not fitting:
            self._refuse(variable, raw, f"it has no scheme; expected a URL such as http://{url}, or "
                         "OTEL_EXPORTER_OTLP_PROTOCOL=grpc beside it.")  # fmt: skip
        for dotted in fitting:
            path = SIGNALS[dotted.partition(".")[0]]
            self.found[dotted] = (add_signal_path(url, path) if is_base else url, variable.name)

    def _is_grpc(self, signal: str) -> bool:
        if self.protocol(signal):
            return self.protocol(signal) == "otlp-grpc"
        chosen = self.found.get(f"{signal}.EXPORTERS", (self._given.get(f"{signal}.EXPORTERS", ()), ""))[0]
        if not isinstance(chosen, tuple) or not any(name.startswith("otlp") for name in chosen):
            # Nothing of this signal is sent over OTLP unless TRACES are, so let them decide.
            return signal != "TRACES" and self._is_grpc("TRACES")
        return "otlp-grpc" in chosen

    def protocol(self, signal: str) -> str:
        """The exporter that the environment's protocol stands for; "" where there is none."""
        return find_protocol(self._environ, signal)

    def _read_exporters(self, variable: Variable, raw: str) -> None:
        signal = variable.keys[0].partition(".")[0]
        known = {"TRACES": SPAN_EXPORTERS, "METRICS": METRIC_EXPORTERS, "LOGS": LOG_EXPORTERS}[signal]
        chosen: list[str] = []
        # Values of an enumeration may be in any case.
        for item in (part.strip().lower() for part in raw.split(",")):
            if item == "none" or not item:
                continue
            if item not in known:
                self._refuse(variable, raw, f"{show(raw)} does not fit; expected a list of {', '.join(known)}.")
                return
            chosen.append((self.protocol(signal) or item) if item == "otlp" else item)
        self._set(variable, tuple(dict.fromkeys(chosen)))

    def read_protocols(self) -> None:
        """Let the environment's protocol stand above that of exporters named in the settings."""
        for signal in SIGNALS:
            protocol = self.protocol(signal)
            chosen = self._given.get(f"{signal}.EXPORTERS")
            if not protocol or f"{signal}.EXPORTERS" in self.found or not isinstance(chosen, tuple):
                continue
            wanted = tuple(dict.fromkeys(protocol if name.startswith("otlp") else name for name in chosen))
            if wanted != chosen:
                self.found[f"{signal}.EXPORTERS"] = (wanted, "OTEL_EXPORTER_OTLP_PROTOCOL")

    def check_together(self) -> None:
        """Lower a batch that is larger than its queue."""
        size, queue = (self.found.get(f"TRACES.BATCH.{name}") for name in ("BATCH_SIZE", "QUEUE_SIZE"))
        if size is None and queue is None:
            return
        batch_size = size[0] if size else self._given.get("TRACES.BATCH.BATCH_SIZE", 512)
        queue_size = queue[0] if queue else self._given.get("TRACES.BATCH.QUEUE_SIZE", 8192)
        assert isinstance(batch_size, int) and isinstance(queue_size, int)
        if batch_size > queue_size:
            variable = (size or queue or (0, ""))[1]
            self.found["TRACES.BATCH.BATCH_SIZE"] = (queue_size, variable)
            if size is not None:
                self._warnings.append(
                    f"The environment variable OTEL_BSP_MAX_EXPORT_BATCH_SIZE is {batch_size}, more than the queue "
                    f"holds; {queue_size} is used."
                )


def _find_pem_fault(path: str, content: bytes) -> str:
    """Return why a path is none of a PEM file with `content` in it; "" when it is one."""
    try:
        if not Path(path).is_file():
            return "no file that exists"
        with Path(path).open("rb") as file:
            return "" if content in file.read(_MOST_PEM_BYTES) else "a file without what it stands for"
    except PermissionError:
        return "a file that this process may not read"
    except (OSError, ValueError):
        # Too long, or with a NUL in it.
        return "no file that exists"


def _find_misspelt(environ: Mapping[str, str]) -> list[str]:
    found = []
    for name in sorted(environ):
        if not name.startswith("OTEL_") or name in VARIABLES or not environ[name].strip() or _SERVICE_LINK.search(name):
            continue
        near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.9)
        if near and not re.fullmatch(r"OTEL_PYTHON_\w+_EXCLUDED_URLS", name):
            found.append(f"The environment variable {name} is not known. Did you mean {near[0]}?")
    return found
