"""What a figure of one configuration depends on, so that it is kept for a later run only while all of that is the same.

Instructions of a peer do not depend on django_otel's code, nor on the day; they
do depend on the peer's own version, Python, valgrind, the processor (libraries
choose their code by it) and on the measured project and its driver.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks import publication
from benchmarks.peers.catalogue import CASES, Peer, Variant
from benchmarks.peers.subjects import SUBJECTS

_HERE = Path(__file__).resolve().parent
#: What runs in the measured process, or answers it. On top comes how the peer is switched on.
_HARNESS = (
    "../callgrind.py", "elastic_sink.py", "process.py", "project.py", "receiver.py", "settings.py", "shop/models.py",
    "sinks.py", "subject.py", "worker.py",
)  # fmt: skip
#: Of a case: what its name and title are, and how many requests a block has, changes no count.
_CASE_FIELDS = ("path", "queries", "status", "is_async", "has_traceparent", "needs_postgres", "few", "many")


def provenance(peer: Peer, variant: Variant, versions: dict[str, str]) -> dict[str, str]:
    """What the figures of a configuration depend on, by what it is called to the reader.

    `versions` are the distributions of the peer's environment.
    """
    machine = publication.machine()
    found = {
        "Python": machine["python"],
        "the processor": machine["processor"],
        "valgrind": _valgrind(),
        "the packages": _digest([json.dumps(versions, sort_keys=True)]),
        "the harness": _digest(
            [
                *(_code(_HERE / name) for name in _HARNESS),
                _subject_code(peer),
                json.dumps([[getattr(case, field) for field in _CASE_FIELDS] for case in CASES]),
                json.dumps([variant.ratio, variant.exports, variant.keeps_errors]),
            ]
        ),
    }
    if peer.name == "django-otel":
        source = sorted((publication.ROOT / "django_otel").rglob("*.py"))
        found["the code"] = _digest(_code(path) for path in [_HERE / "own.py", *source])
    return found


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What is no longer the same, as in "the packages, the harness"; "" when a figure may be kept."""
    return ", ".join(name for name in dict.fromkeys([*now, *before]) if now.get(name) != before.get(name))


def _code(path: Path) -> str:
    """A module without its comments and its layout."""
    return _dump(path.read_bytes())


@functools.lru_cache(maxsize=1024)
def _dump(source: bytes) -> str:
    return ast.dump(ast.parse(source))


def _subject_code(peer: Peer) -> str:
    """What switches this peer on: the module of the subjects without the classes of the others."""
    mine = {kind.__name__ for kind in SUBJECTS[peer.name].__mro__}
    others = {kind.__name__ for kind in SUBJECTS.values()} - mine
    module = ast.parse((_HERE / "subjects.py").read_bytes())
    module.body = [part for part in module.body if not (isinstance(part, ast.ClassDef) and part.name in others)]
    return ast.dump(module)


def _digest(texts: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode() + b"\0")
    return whole.hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _valgrind() -> str:
    """Its version; "" when it is not installed, and nothing is counted."""
    try:
        return subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except OSError:
        return ""
