"""Judges of a Prometheus page: the parsers of prometheus_client, promtool, and what they overlook."""

from __future__ import annotations

import math
import shutil
import subprocess

from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Parsed:
    """A page that both the grammar and Prometheus' rule against duplicates accept."""

    def __init__(self, page: bytes, *, openmetrics: bool) -> None:
        self.text = page.decode("utf-8")
        parse = openmetrics_parser if openmetrics else text_parser
        self.families = {}
        self.samples: Samples = {}
        self.exemplars = {}
        for family in parse.text_string_to_metric_families(self.text):
            assert family.name not in self.families, f"two families {family.name}"
            self.families[family.name] = family
            for sample in family.samples:
                # A label without a value is no label to Prometheus.
                labels = {name: text for name, text in sample.labels.items() if text}
                if "le" in labels and sample.name.endswith("_bucket"):
                    labels["le"] = str(float(labels["le"]))
                key = (sample.name, frozenset(labels.items()))
                assert key not in self.samples, f"two samples {key}"
                self.samples[key] = sample.value
                if sample.exemplar:
                    self.exemplars[key] = sample.exemplar
        comments = [line.split(" ", 3)[1:3] for line in self.text.splitlines() if line.startswith("# ")]
        assert len(comments) == len({tuple(comment) for comment in comments}), "metadata twice"

    def value(self, name: str, /, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def parse_text(page: bytes) -> Parsed:
    return Parsed(page, openmetrics=False)


def parse_openmetrics(page: bytes) -> Parsed:
    return Parsed(page, openmetrics=True)


def same(one: float, other: float) -> bool:
    """Equal up to what the last digit of a sum may differ by when it is added up in another order."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or math.isclose(one, other, rel_tol=1e-12)


def assert_same_samples(ours: Samples, theirs: Samples) -> None:
    assert ours.keys() == theirs.keys()
    different = {key: (value, theirs[key]) for key, value in ours.items() if not same(value, theirs[key])}
    assert not different


def lint(page: bytes) -> str:
    """What `promtool check metrics` complains about, "" for nothing."""
    promtool = shutil.which("promtool")
    assert promtool is not None
    # The linter takes the page on its standard input.
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).decode().splitlines(keepends=True)
    # The conventions' names of two gauges end in "count".
    conventional = ("process_open_file_descriptor_count ", "process_thread_count ")
    complaints = "".join(line for line in lines if not line.startswith(conventional))
    return complaints or ("" if lines or done.returncode == 0 else f"promtool ended with {done.returncode}")
