"""The shape of the package's code: sizes, `Any`, and state at module level; what is too large now may only shrink."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

# Each reads the whole package.
pytestmark = pytest.mark.heavy

PACKAGE = Path(__file__).resolve().parents[2] / "django_otel"

MODULE_LINES = 600
CLASS_LINES = 300
FUNCTION_LINES = 60
#: Uses of `Any` in 1 000 lines of the whole package. Lower it whenever fewer are left.
ANY_PER_1000_LINES = 12

#: What is larger, with the lines it may have at most. Lower a number, or take an entry out, whenever it shrinks.
LARGE_MODULES: dict[str, int] = {}
LARGE_CLASSES: dict[str, int] = {}
LARGE_FUNCTIONS: dict[str, int] = {}
#: Names at module level that change while a process runs. At most `MOST_REBOUND_NAMES` of them are to stay.
REBOUND_NAMES = {
    "__init__.py globals()": "the names of `api`, each imported when it is first asked for",
    "conf.py _cached": "the settings as they were parsed; parsed again when `settings.OTEL` changes",
    "metrics/registry.py _collector": "what is registered with prometheus_client, whose registry is global too",
}
MOST_REBOUND_NAMES = 5
#: Where a thread is started under a lock: under gevent that lets others run, who may want the lock.
STARTS_UNDER_LOCKS = {
    "export/batch.py BatchWorker._start": "its lock is replaced when gevent has patched `threading`",
    "live_sampling/follower.py Follower.start": "made at the first request, so after gevent has patched",
}

#: What only a base class or a framework calls, by a name that stands nowhere else.
CALLED_BY_OTHERS = {
    "apps.py DjangoOTelConfig": "Django, which takes the only AppConfig of the module",
    "base/sdk_compat.py watch_grpc_answers.TooLarge.trailing_metadata": "the exporter over gRPC",
    "console/entries.py ConsoleAdmin.has_module_permission": "the admin",
    "console/notices.py _NoRedirects.redirect_request": "urllib",
    "instrumentation/feature_flags.py _watch_openfeature.EvaluationHook.finally_after": "OpenFeature",
    "export/http_session.py build_session.Session.get_redirect_target": "requests",
    "instrumentation/tasks/dramatiq_hooks.py Hooks.after_enqueue": "Dramatiq",
    "instrumentation/tasks/dramatiq_hooks.py Hooks.after_process_message": "Dramatiq",
    "instrumentation/tasks/dramatiq_hooks.py Hooks.before_enqueue": "Dramatiq",
    "instrumentation/tasks/dramatiq_hooks.py Hooks.before_process_message": "Dramatiq",
    "instrumentation/tasks/dramatiq_hooks.py Hooks.before_worker_boot": "Dramatiq",
    "live_sampling/admin.py SamplingPolicyAdmin.get_fieldsets": "the admin",
    "live_sampling/command.py SamplingCommand._rule_add": "the command, by the name of the subcommand",
    "live_sampling/command.py SamplingCommand._rule_list": "the command, by the name of the subcommand",
    "live_sampling/command.py SamplingCommand._rule_remove": "the command, by the name of the subcommand",
    "live_sampling/log_level_form.py LogLevelForm.clean_logger": "Django's forms",
    "operations/collect.py _Handler.version_string": "http.server",
    "tracing/ids.py OwnRandomIdGenerator.is_trace_id_random": "the SDK",
}


@cache
def _sources() -> dict[str, tuple[str, ast.Module]]:
    """Text and syntax tree of every module, by its path below the package; without migrations."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if "migrations/" not in name:
            text = path.read_text(encoding="utf-8")
            found[name] = (text, ast.parse(text))
    return found


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST, int]]:
    """Qualified name, node and lines of every class and function below `node`; decorators are not counted."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert child.end_lineno is not None
            yield prefix + child.name, child, child.end_lineno - child.lineno + 1
            yield from _definitions(child, f"{prefix}{child.name}.")
        else:
            yield from _definitions(child, prefix)


def _rebound_names(tree: ast.Module) -> set[str]:
    """Names of a module that functions rebind by `global`, and names of other modules that it assigns to."""
    found = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_otel"):
            package = PACKAGE.parent / node.module.replace(".", "/")
            for alias in node.names:
                if (package / f"{alias.name}.py").exists() or (package / alias.name).is_dir():
                    modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        is_assigned = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
        if is_assigned and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            value = node.value
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "globals":
                found.add("globals()")
    return found


def _check(found: dict[str, int], most: int, allowed: dict[str, int], what: str) -> None:
    """Fail for what is larger than `most` and not in `allowed`, or larger than there, and for entries not needed."""
    large = {name: lines for name, lines in found.items() if lines > most}
    grown = {name: lines for name, lines in large.items() if lines > allowed.get(name, most)}
    assert not grown, f"{what} over {most} lines (or over what this test allows): split them: {grown}"
    stale = sorted(set(allowed) - set(large))
    assert not stale, f"{what} that are small enough now: take them out of the list: {stale}"


def test_no_module_is_too_long() -> None:
    found = {name: len(text.splitlines()) for name, (text, _) in _sources().items()}
    _check(found, MODULE_LINES, LARGE_MODULES, "modules")


def test_no_class_is_too_long() -> None:
    found = {
        f"{module} {name}": lines
        for module, (_, tree) in _sources().items()
        for name, node, lines in _definitions(tree)
        if isinstance(node, ast.ClassDef)
    }
    _check(found, CLASS_LINES, LARGE_CLASSES, "classes")


def test_no_function_is_too_long() -> None:
    found = {
        f"{module} {name}": lines
        for module, (_, tree) in _sources().items()
        for name, node, lines in _definitions(tree)
        if not isinstance(node, ast.ClassDef)
    }
    _check(found, FUNCTION_LINES, LARGE_FUNCTIONS, "functions")


def test_any_does_not_spread() -> None:
    uses = sum(
        isinstance(node, ast.Name) and node.id == "Any" for _, tree in _sources().values() for node in ast.walk(tree)
    )
    lines = sum(len(text.splitlines()) for text, _ in _sources().values())
    assert 1000 * uses / lines <= ANY_PER_1000_LINES


def test_state_stands_in_objects_and_not_in_modules() -> None:
    found = {f"{module} {name}" for module, (_, tree) in _sources().items() for name in _rebound_names(tree)}
    assert not found - set(REBOUND_NAMES), "names at module level that change: put them into an object"
    assert not set(REBOUND_NAMES) - found, "names that no longer change: take them out of the list"
    assert len(found) <= MOST_REBOUND_NAMES


def test_what_stays_rebound_is_explained() -> None:
    assert all(REBOUND_NAMES.values())


def _opens_with_a_question(node: ast.AST) -> bool:
    words = ["What ", "Who ", "Whoever "]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        words += ["How ", "Where ", "When ", "Whether "]
    return (ast.get_docstring(node) or "").startswith(tuple(words))  # type: ignore[arg-type]


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    found = [
        f"{module} {name}"
        for module, (_, tree) in _sources().items()
        for name, node in [("", tree), *((name, node) for name, node, _ in _definitions(tree))]
        if _opens_with_a_question(node)
    ]
    assert not found, "write a verb (Return ...) or a noun (Registry of ...)"


def test_every_function_and_class_is_named_where_it_is_used() -> None:
    """What is named nowhere but where it is defined is dead, unless a base class or a framework calls it."""
    texts = "\n".join(
        path.read_text(encoding="utf-8", errors="ignore")
        for root in (
            PACKAGE,
            PACKAGE.parent / "tests",
            PACKAGE.parent / "benchmarks",
            PACKAGE.parent / "example_project",
        )
        for path in root.rglob("*")
        if path.suffix in (".py", ".html", ".txt", ".js") and "migrations" not in path.parts
    )
    # Without this list; a decorator may register what it stands on.
    times = Counter(re.findall(r"\w+", texts)) - Counter(re.findall(r"\w+", " ".join(CALLED_BY_OTHERS)))
    found = {
        f"{module} {name}"
        for module, (_, tree) in _sources().items()
        for name, node, _ in _definitions(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and times[node.name] == 1
        and not node.decorator_list
        and not node.name.startswith("__")
    }
    assert found == set(CALLED_BY_OTHERS)


def test_each_exception_to_a_rule_of_ruff_has_a_reason() -> None:
    """But for E501: long patterns and rows of tables, one to a line."""
    found = [
        f"{module}:{number}"
        for module, (text, _) in _sources().items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"# noqa(?!: [A-Z][A-Z0-9, ]+ \()(?!: E501)", line)
    ]
    assert not found


def test_no_thread_is_started_under_a_lock_of_the_system() -> None:
    """With --preload, gunicorn's gevent workers patch `threading` late: an older lock would stop all greenlets."""
    found = {
        f"{module} {name}"
        for module, (_, tree) in _sources().items()
        for name, definition, _ in _definitions(tree)
        if isinstance(definition, ast.FunctionDef)
        for block in ast.walk(definition)
        if isinstance(block, ast.With) and any("lock" in ast.unparse(item.context_expr) for item in block.items)
        for call in ast.walk(block)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("thread.start")
    }
    assert found == set(STARTS_UNDER_LOCKS)
