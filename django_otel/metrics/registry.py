"""The bridge to prometheus_client's registry, in both directions.

`start_registry` puts our families into the registry that a project already
serves; `render_registry` puts that registry's own collectors on our page.
prometheus_client costs 30 ms to import and is optional: it is imported when
one of these is used, never with this module.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django_otel.base import guard
from django_otel.metrics import exemplar_choice, exposition, page_groups, prometheus_names
from django_otel.metrics.model import Exemplar, Family, HistogramValue, Point

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

#: True while our own page reads the registry, in which we may be registered ourselves: nothing must appear twice.
_on_our_page: ContextVar[bool] = ContextVar("django_otel_on_our_page", default=False)

_collector: FamiliesCollector | None = None
_lock = threading.Lock()

#: As `page_groups.SUFFIXES`, for the types that only prometheus_client has.
_SUFFIXES = {
    **page_groups.SUFFIXES,
    "summary": ("", "_sum", "_count", "_created"),
    "gaugehistogram": ("", "_bucket", "_gsum", "_gcount"),
}
_NO_SUFFIX = ("",)


class FamiliesCollector:
    """Our families as a collector of prometheus_client."""

    def __init__(
        self,
        registry: CollectorRegistry,
        get_families: Callable[[], Iterable[Family]],
        get_resource_attributes: Callable[[], Mapping[str, object]] | None,
    ) -> None:
        self.registry = registry
        self.get_families = get_families
        self.get_resource_attributes = get_resource_attributes

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: without this method the registry collects at registration, at start-up."""
        return []

    def collect(self) -> Iterator[Metric]:
        if _on_our_page.get():
            return
        metrics: list[Metric] = []
        with guard.contained("the collector in prometheus_client's registry"):
            metrics = list(self._build())
        yield from metrics

    def _build(self) -> Iterator[Metric]:
        # Collectors that the project registered stay; the registry only compares names at registration.
        taken = getattr(self.registry, "_names_to_collectors", {})
        if self.get_resource_attributes is not None and "target_info" not in taken:
            metric = _target_info(self.get_resource_attributes())
            if metric is not None:
                yield metric
        for group in page_groups.build_groups(self.get_families()):
            names = [group.name + suffix for suffix in page_groups.SUFFIXES[group.type]]
            if any(name in taken for name in names):
                guard.warn_once(
                    f"registry.taken.{group.name}",
                    "The metric %s is not in prometheus_client's registry: another collector has that name there.",
                    group.name,
                )
                continue
            with guard.contained(f"the registry's view of {group.name}"):
                yield _build_metric(group)


def _target_info(attributes: Mapping[str, object]) -> Metric | None:
    from prometheus_client.metrics_core import Metric

    pairs = prometheus_names.label_pairs(prometheus_names.target_attributes(attributes))
    if not pairs:
        return None
    metric = Metric("target", "Target metadata", "info")
    metric.add_sample("target_info", dict(pairs), 1)
    return metric


def _build_metric(group: page_groups.Group) -> Metric:
    from prometheus_client.metrics_core import Metric

    metric = Metric(group.name, group.help, group.type, group.unit)
    for point in group.series.values():
        with guard.contained(f"the registry's view of {group.name}"):
            # All of a point's samples or none.
            metric.samples.extend(list(_samples(group, point)))
    return metric


def _samples(group: page_groups.Group, point: Point) -> Iterator[Any]:
    from prometheus_client.samples import Sample

    value = point.value
    is_histogram = group.type == "histogram"
    labels = dict(prometheus_names.label_pairs(point.attributes, is_histogram=is_histogram))
    if not is_histogram:
        if not isinstance(value, int | float):
            raise TypeError("a distribution where a number belongs")
        if group.type == "counter":
            if not value >= 0:
                raise ValueError("a counter that is not a number of zero or more")
            exemplar = exemplar_choice.newest_exemplar(point.exemplars)
            yield Sample(group.name + "_total", labels, value, None, _build_exemplar(exemplar))
        else:
            yield Sample(group.name, labels, value)
        return
    if not isinstance(value, HistogramValue):
        raise TypeError("not a distribution")
    exposition.check_bounds(value.bounds)
    exemplars = exemplar_choice.exemplars_by_bucket(value.bounds, point.exemplars)
    counts = [int(count) for count in itertools.accumulate(value.buckets)]
    for bucket, (bound, count) in enumerate(zip((*value.bounds, float("inf")), counts, strict=True)):
        bucket_labels = {**labels, "le": prometheus_names.format_bound(bound)}
        yield Sample(group.name + "_bucket", bucket_labels, count, None, _build_exemplar(exemplars.get(bucket)))
    if exposition.has_sum(value):
        yield Sample(group.name + "_count", labels, counts[-1])
        yield Sample(group.name + "_sum", labels, value.sum)


def _build_exemplar(exemplar: Exemplar | None) -> Any:
    from prometheus_client.samples import Exemplar as ClientExemplar

    if exemplar is None or not exemplar_choice.is_showable(exemplar):
        return None
    return ClientExemplar(exemplar_choice.exemplar_labels(exemplar), exemplar.value, round(exemplar.time_unix_s, 3))


def start_registry(
    get_families: Callable[[], Iterable[Family]],
    get_resource_attributes: Callable[[], Mapping[str, object]] | None = None,
    registry: CollectorRegistry | None = None,
) -> None:
    """Show our families in `registry` (prometheus_client's `REGISTRY` by default).

    Doing it again replaces the callbacks; nothing is collected before the
    first scrape. The callbacks run in the thread that scrapes.

    Errors: `ImportError` when prometheus_client is not installed.
    """
    global _collector  # noqa: PLW0603 (the one value that the module keeps)
    from prometheus_client import REGISTRY

    wanted = registry if registry is not None else REGISTRY
    with _lock:
        if _collector is not None and _collector.registry is wanted:
            _collector.get_families = get_families
            _collector.get_resource_attributes = get_resource_attributes
            return
        _unregister(_collector)
        _collector = None
        made = FamiliesCollector(wanted, get_families, get_resource_attributes)
        wanted.register(made)
        _collector = made


def stop_registry() -> None:
    """Remove our families from the registry; may be called twice."""
    global _collector  # noqa: PLW0603 (the one value that the module keeps)
    with _lock:
        _unregister(_collector)
        _collector = None


def _unregister(collector: FamiliesCollector | None) -> None:
    if collector is None:
        return
    # Other code, a test for instance, may have emptied the registry.
    with contextlib.suppress(KeyError):
        collector.registry.unregister(collector)


def render_registry(page: exposition.Page, registry: CollectorRegistry | None = None) -> None:
    """Write the collectors of `registry` (prometheus_client's `REGISTRY` by default) on our page, behind our families.

    Our own collector is left out. What is on the page already (one of our
    names, a family that an earlier collector gave, the resource) stays as it
    is: the newcomer is left out with one warning. A collector that fails costs
    its own families alone.

    Errors: `ImportError` when prometheus_client is not installed.
    """
    from prometheus_client import REGISTRY

    for metric in _collect(registry if registry is not None else REGISTRY):
        with guard.contained("the exposition of a collector in prometheus_client's registry"):
            _write_metric(page, metric)


def _collect(registry: CollectorRegistry) -> list[Metric]:
    # The registry's own collect() is one generator over all collectors: the first that raises ends it. The list of
    # collectors is not public; without it we read them in that one go.
    collectors: list[Any] = list(getattr(registry, "_collector_to_names", None) or [registry])
    if is_multiprocess():
        collectors = _merge_processes(collectors)
    metrics: list[Metric] = []
    token = _on_our_page.set(True)
    try:
        for collector in collectors:
            with guard.contained(f"{type(collector).__name__} in prometheus_client's registry"):
                metrics.extend(collector.collect())
    finally:
        _on_our_page.reset(token)
    return metrics


def is_multiprocess() -> bool:
    """Return whether prometheus_client keeps its numbers in files (PROMETHEUS_MULTIPROC_DIR), over all workers."""
    from prometheus_client.values import ValueClass

    name: str = ValueClass.__name__
    return name == "MmapedValue"


def _merge_processes(collectors: list[object]) -> list[object]:
    """Replace prometheus_client's own instruments by their sum over all processes.

    Collectors that describe the answering process (its memory, its garbage collector) are left out: with several
    workers their numbers would jump. Collectors of the project stay.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.gc_collector import GCCollector
    from prometheus_client.metrics import MetricWrapperBase
    from prometheus_client.process_collector import ProcessCollector

    single = (MetricWrapperBase, ProcessCollector, GCCollector)
    kept = [collector for collector in collectors if not isinstance(collector, single)]
    return [_all_processes_class()(CollectorRegistry()), *kept]


@functools.cache
def _all_processes_class() -> Callable[[CollectorRegistry], object]:
    """Return the class that sums up all processes; made late, for prometheus_client is imported late."""
    from prometheus_client.multiprocess import MultiProcessCollector

    class AllProcesses(MultiProcessCollector):
        @staticmethod
        def merge(files: Iterable[str], accumulate: bool = True) -> Iterable[Metric]:
            # A process that has just begun, or was killed then, has an empty file, and prometheus_client reads none.
            begun = [path for path in files if _has_content(path)]
            found: Iterable[Metric] = MultiProcessCollector.merge(begun, accumulate)  # type: ignore[no-untyped-call]
            return found

    return AllProcesses


def _has_content(path: str) -> bool:
    try:
        return Path(path).stat().st_size > 0
    except OSError:
        return False


def _write_metric(page: exposition.Page, metric: Metric) -> None:
    from prometheus_client.openmetrics.exposition import escape_metric_name

    if not metric.samples:
        return
    name = escape_metric_name(metric.name)
    owner = page.claims.take(name, _SUFFIXES.get(metric.type, _NO_SUFFIX))
    if owner is not None:
        guard.warn_once(
            f"registry.conflict.{name}",
            "The metric %s of prometheus_client's registry is not on the page: its name meets that of another, %s.",
            name,
            owner,
        )
        return
    page.write(_format_metric(_without_doubles(metric), openmetrics=page.openmetrics))


def _without_doubles(metric: Metric) -> Metric:
    """The metric with one sample per series: a custom collector may give two, and Prometheus rejects the second."""
    from prometheus_client.metrics_core import Metric

    unique: dict[object, Any] = {}
    for sample in metric.samples:
        labels = tuple(sorted((key, text) for key, text in sample.labels.items() if text))
        unique.setdefault((sample.name, labels), sample)
    if len(unique) == len(metric.samples):
        return metric
    copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    copy.samples = list(unique.values())
    return copy


class _Single:
    """A registry of one metric for prometheus_client's exposition, so that one fault leaves the others intact."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def _format_metric(metric: Metric, *, openmetrics: bool) -> bytes:
    from prometheus_client import exposition as text_format
    from prometheus_client.openmetrics import exposition as openmetrics_format

    generate: Any = openmetrics_format.generate_latest if openmetrics else text_format.generate_latest
    text: bytes = generate(_Single(metric))
    return text.removesuffix(b"# EOF\n")
