"""A limit on repeated queries, for tests with any test runner."""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from inspect import isasyncgenfunction, isgeneratorfunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from django_otel.instrumentation.advice import Advice

F = TypeVar("F", bound=Callable[..., Any])

_TRANSACTION_WORDS = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN", "COMMIT"})
_SHOWN = 5
#: Counts of the blocks that are open here. Django runs asynchronous queries in other threads, on connections of theirs,
#: with a copy of the context.
_open: ContextVar[tuple[_Counts, ...]] = ContextVar("django_otel_query_limits", default=())


class _Places:
    """The lines that run one statement."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._advice: dict[str, set[Advice]] = {}

    def note(self, *, is_too_often: bool) -> None:
        """Count a query that is about to run; look for the cure if there were too many."""
        from django_otel.instrumentation.advice import find_advice
        from django_otel.instrumentation.callers import walk

        found = walk(sys._getframe(1))  # noqa: SLF001 (the documented way is much slower)
        if found is None:
            return
        where = found.attributes
        place = f"{where['code.file.path']}:{where.get('code.line.number', '?')} in {where['code.function.name']}"
        self._counts[place] += 1
        if is_too_often:
            finding = find_advice(found.inner, found.frame)
            if finding is not None:
                self._advice.setdefault(place, set()).add(finding.advice)

    @property
    def has_advice(self) -> bool:
        """Return whether there is a cure for one of them."""
        return bool(self._advice)

    def describe(self, read_singly: Counter[str]) -> Iterator[str]:
        """Yield a line of text for each; `read_singly` says how often one row of a table was read."""
        from django_otel.instrumentation.advice import fit_to_single, render

        for place, times in self._counts.most_common(_SHOWN):
            tables = [table for table, number in read_singly.items() if number >= times]
            advice = fit_to_single(self._advice.get(place, ()), tables)
            models = {each.model for each in advice}
            cure = f"{models.pop()} {render(advice)}" if len(models) == 1 else render(advice)
            yield f"    {times} from {place}" + (f": {cure}" if cure else "")


class _Counts:
    """The statements of one block."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: Counter[tuple[str, str]] = Counter()
        self._places: dict[tuple[str, str], _Places] = {}
        #: Of statements that read one row, its table.
        self._tables: dict[tuple[str, str], str | None] = {}

    def add(self, database: Any, sql: object) -> None:
        """Count a statement that is about to run; savepoints are none."""
        from django_otel.instrumentation.n_plus_one import find_one_of
        from django_otel.redaction.statements import parameterise

        statement = parameterise(sql, database.vendor)
        text = statement.text
        if text.partition(" ")[0].upper() in _TRANSACTION_WORDS:
            return
        key = database.alias, text
        self._counts[key] += 1
        self._tables[key] = find_one_of(statement)
        self._places.setdefault(key, _Places()).note(is_too_often=self._counts[key] > self._most)

    def check(self) -> None:
        """Fail if there were too many of one."""
        repeated = [(key, times) for key, times in self._counts.most_common() if times > self._most]
        if not repeated:
            return
        read_singly: Counter[str] = Counter()
        for key, table in self._tables.items():
            if table and not self._places[key].has_advice:
                read_singly[table] += self._counts[key]
        lines = []
        for key, times in repeated[:_SHOWN]:
            alias, text = key
            lines += [f"{times} times on {alias!r}: {text}", *self._places[key].describe(read_singly)]
        if len(repeated) > _SHOWN:
            lines.append(f"and {len(repeated) - _SHOWN} more statements")
        raise AssertionError(f"Expected each statement at most {self._most} times. Found:\n" + "\n".join(lines))


class _Cursors:
    """Django's cursors, whose queries are counted while a block is open in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._plain: dict[str, Callable[..., Any]] = {}

    def watch(self) -> None:
        from django.db.backends.utils import CursorWrapper

        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                for name in ("execute", "executemany"):
                    self._plain[name] = vars(CursorWrapper)[name]
                    setattr(CursorWrapper, name, _counting(self._plain[name]))

    def leave(self) -> None:
        from django.db.backends.utils import CursorWrapper

        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                for name, plain in self._plain.items():
                    setattr(CursorWrapper, name, plain)


def _counting(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(self: Any, sql: object, *args: object, **kwargs: object) -> object:
        for counts in _open.get():
            counts.add(self.db, sql)
        return plain(self, sql, *args, **kwargs)

    return call


_cursors = _Cursors()


class QueryLimit:
    """Result of `assert_max_queries_per_statement`: a context manager and a decorator, sync and async."""

    def __init__(self, n: int) -> None:
        self._most = n
        self._runs: list[tuple[_Counts, Token[tuple[_Counts, ...]]]] = []

    def __enter__(self) -> None:
        counts = _Counts(self._most)
        _cursors.watch()
        self._runs.append((counts, _open.set((*_open.get(), counts))))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        counts, token = self._runs.pop()
        _cursors.leave()
        try:
            _open.reset(token)
        except ValueError:
            # It began in another task, as that of an asynchronous fixture; what is open here is not this one.
            pass
        if kind is None:
            counts.check()

    def __call__(self, function: F) -> F:
        """Decorate a function or a coroutine function: each call is a block of its own.

        Errors: `TypeError` for a class or a generator, whose code runs after the call.
        """
        from asgiref.sync import iscoroutinefunction

        if isinstance(function, type) or isgeneratorfunction(function) or isasyncgenfunction(function):
            kind = "class" if isinstance(function, type) else "generator"
            raise TypeError(
                f"{function.__qualname__} is a {kind}; assert_max_queries_per_statement() decorates functions and "
                "coroutine functions. Open the block inside: with assert_max_queries_per_statement(n), or "
                "self.enterContext(...) in setUp()."
            )

        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: object, **kwargs: object) -> object:
                with QueryLimit(self._most):
                    return await function(*args, **kwargs)

            return call_async  # type: ignore[return-value]

        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            with QueryLimit(self._most):
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]


def assert_max_queries_per_statement(n: int) -> QueryLimit:
    """Fail if one statement, whatever its values, is run more than `n` times inside, over all databases.

    Counted are the statements of this thread, and those of asynchronous code in the threads that Django runs them in;
    savepoints are not. Threads that the code starts itself count if they run in a copy of the context. Context manager
    and decorator, also of coroutine functions and for `TestCase.enterContext`.

    Errors: `AssertionError` naming the statements, the lines that run them and, where it is certain, the cure, in the
    words of the event `django.n_plus_one`; `ValueError` if `n` is not a whole number or below 0.
    """
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"n is {n!r}; expected a whole number of at least 0")
    return QueryLimit(n)
