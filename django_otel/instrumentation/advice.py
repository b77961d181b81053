"""Advice for equal queries of a request, derived from the model field behind them, never from SQL.

While a relation or a deferred field is loaded, Django's own frames stand on the
stack between the query and the project's line: the field's descriptor, or the
evaluation of a related manager's queryset. Their variables name the field and the
object. No such frame, or one that only looks like it (`related.filter(...)`,
`.get(pk=...)`), means no advice; so does an object that no query has loaded
(`origins`), or that is only being built (`post_init`): joined and prefetched objects
come after that. An object of `raw()` takes prefetched ones alone. Nor is there any where
the code around the line changes what the relation goes by (`changed_objects`).
"""

# ruff: noqa: SLF001 (querysets do not say in public where they come from)

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet, FieldDoesNotExist
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet
from django.db.models.query import ModelIterable
from django.template.context import BaseContext

from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.instrumentation import origins
from django_otel.instrumentation.callers import is_boundary, is_django, is_project
from django_otel.requests.record import current as record_of_request

#: None before Django 6.1.
FETCH_ONE: object = getattr(models, "FETCH_ONE", None)

SELECT = "select_related"
PREFETCH = "prefetch_related"
FIELDS = "only"
#: Objects, in the variables of a frame or behind them, among which the object of the relation is looked for.
_MAX_OBJECTS = 100
_MAX_STEPS = 3
#: Attributes of a request that have its user: those of Django's middleware, and of REST framework.
_USERS = ("_cached_user", "_acached_user", "user")
#: Frames in which an object that was given to a function is looked for.
_MAX_CALLERS = 100


@record
class Advice:
    """One cure."""

    #: The queryset's method.
    method: str
    #: Its argument, the path of a relation.
    path: str
    #: Label of the model whose queryset it is, and its table.
    model: str
    table: str
    #: Whether `fetch_mode(FETCH_PEERS)` is another one.
    has_peers: bool


class _Step(NamedTuple):
    """A relation on the way from one object to another."""

    read_as: str
    #: Its name in a join; None where `select_related()` does not follow it.
    joined_as: str | None


class _Stack(NamedTuple):
    """The frames between what loads and the line of the project, innermost first, and that line's."""

    inner: list[FrameType]
    place: FrameType

    def frames(self) -> Iterator[FrameType]:
        """Frames from what loads outwards, inside the view or middleware that runs."""
        yield from self.inner
        frame: FrameType | None = self.place
        while frame is not None and not is_boundary(frame.f_code):
            yield frame
            frame = frame.f_back


class Finding:
    """Found advice, and by which frame: how far out it is, and what is loaded there; see `read_subject`."""

    __slots__ = ("advice", "depth", "subject")

    def __init__(self, depth: int, subject: object, advice: Advice) -> None:
        self.depth = depth
        self.subject = subject
        self.advice = advice


@guard.guarded("advice against equal queries", None)
def find_advice(inner: list[FrameType], place: FrameType) -> Finding | None:
    """Return the cure for the query that the frames `inner` run for the line of `place`; None where none is certain.

    `inner` has the innermost frame first.
    """
    if any(frame.f_code.co_qualname == _DELETION for frame in inner):
        # Of objects that Django has looked for itself.
        return None
    queryset: QuerySet[Any] | None = None
    for depth, frame in enumerate(inner):
        code = frame.f_code
        if code.co_qualname not in _LOADERS or not is_django(code.co_filename):
            continue
        values = frame.f_locals
        if code.co_qualname == _EVALUATION:
            if queryset is not None:
                # The query belongs to the innermost.
                return None
            queryset = values["self"]
            found = None if _is_being_built(place) else _advise_on_manager(queryset, _Stack(inner[depth + 1 :], place))
            if found is not None:
                return Finding(depth, read_subject(frame), found)
        elif queryset is None:
            # An aggregate or a check for existence: it loads no object.
            return None
        else:
            if not _is_from_query(values["instance"], place, code.co_qualname):
                return None
            stack = _Stack(inner[depth + 1 :], place)
            found = _LOADERS[code.co_qualname](values["self"], values["instance"], queryset, stack)
            return Finding(depth, read_subject(frame), found) if found is not None else None
    return None


def read_subject(frame: FrameType) -> tuple[type, object]:
    """Return the class of the object and the descriptor of the relation or field that the frame of a `Finding` loads.

    A manager's relation needs none: the statement of another one is another.
    """
    values = frame.f_locals
    instance = values.get("instance")
    if instance is not None:
        return type(instance), values.get("self")
    return type(getattr(values.get("self"), "_hints", {}).get("instance")), None


def fit_to_single(advice: Iterable[Advice], tables: Collection[str]) -> set[Advice]:
    """Return the advice for objects of these tables that are read one by one: without prefetches."""
    kept = set()
    for each in advice:
        if each.table not in tables:
            kept.add(each)
        elif each.method != PREFETCH:
            kept.add(replace(each, has_peers=False))
    return kept


def render(advice: Iterable[Advice]) -> str:
    """Return the text of several cures for one line, by model if there are several; "" without any."""
    by_model: dict[str, list[Advice]] = {}
    for each in advice:
        by_model.setdefault(each.model, []).append(each)
    if len(by_model) == 1:
        return _render(*by_model.values())
    return "; ".join(f"{model}: {_render(found)}" for model, found in sorted(by_model.items()))


def _render(advice: list[Advice]) -> str:
    parts = []
    for method in (SELECT, PREFETCH):
        names = sorted({f'"{each.path}"' for each in advice if each.method == method})
        if names:
            parts.append(f"{method}({', '.join(names)})")
    names = sorted({f'"{each.path}"' for each in advice if each.method == FIELDS})
    if names:
        parts.append(f"only() with {', '.join(names)} or defer() without {'it' if len(names) == 1 else 'them'}")
    text = " and ".join(parts)
    if all(each.has_peers for each in advice):
        text += ", or fetch_mode(FETCH_PEERS)"
    return text


# --- By the frame that loads. ---


def _advise_on_forward(descriptor: Any, instance: Model, queryset: QuerySet[Any], stack: _Stack) -> Advice | None:
    """`order.customer`, of a foreign key or a one-to-one field."""
    field = descriptor.field
    if not _loads(queryset, field.remote_field.model):
        return None
    keys = {own.attname for own, _ in field.related_fields}
    if field.remote_field.parent_link:
        # It is loaded where fields are deferred. `select_related()` ignores it.
        return _build(PREFETCH, field.name, instance, stack, keys, may_fetch_peers=True)
    return _advise_on_object(instance, field.name, field.name, queryset, stack, keys)


def _advise_on_reverse(descriptor: Any, instance: Model, queryset: QuerySet[Any], stack: _Stack) -> Advice | None:
    """`customer.profile`, the other end of a one-to-one field."""
    related = descriptor.related
    if not _loads(queryset, related.related_model):
        return None
    keys = {"pk", *(other.attname for _, other in related.field.related_fields)}
    read_as = related.get_accessor_name()
    return _advise_on_object(instance, related.field.related_query_name(), read_as, queryset, stack, keys)


def _advise_on_object(
    instance: Model, joined_as: str, read_as: str, queryset: QuerySet[Any], stack: _Stack, keys: set[str]
) -> Advice | None:
    """The relation to one object: a join, or a second query where it is in another database or no join leads there."""
    if _climbs(queryset, instance, read_as, stack.place):
        return None
    if queryset.db == instance._state.db:
        found = _build(SELECT, joined_as, instance, stack, keys, may_fetch_peers=True)
        if found is not None:
            return found
    return _build(PREFETCH, read_as, instance, stack, keys, may_fetch_peers=True)


def _advise_on_field(descriptor: Any, instance: Model, queryset: QuerySet[Any], stack: _Stack) -> Advice | None:
    """`book.text`, where `defer()` or `only()` has left it out."""
    if not _loads(queryset, type(instance)):
        return None
    return _build(FIELDS, descriptor.field.name, instance, stack, {descriptor.field.attname}, may_fetch_peers=True)


def _advise_on_generic(descriptor: Any, instance: Model, queryset: QuerySet[Any], stack: _Stack) -> Advice | None:
    """`note.content_object`, a generic foreign key."""
    # Django 6.1 has a descriptor for it, earlier versions the field itself.
    field = getattr(descriptor, "field", descriptor)
    keys = {field.ct_field, getattr(instance._meta.get_field(field.ct_field), "attname", ""), field.fk_field}
    return _build(PREFETCH, field.name, instance, stack, keys, may_fetch_peers=True)


def _advise_on_manager(queryset: QuerySet[Any], stack: _Stack) -> Advice | None:
    """`order.items.all()`: a prefetch is of use if the queryset is what the related manager itself gives."""
    queryset_state: Any = queryset
    query = queryset.query
    if query.is_sliced or query.select_for_update or queryset_state._iterable_class is not ModelIterable:
        return None
    given = queryset_state._hints.get("instance")
    # A generic relation does not name the object.
    instances = [given] if given is not None else list(_find_objects(stack.place))
    find_names = _find_managers if given is not None else _find_generic
    found = []
    with contextlib.suppress(_QueryRefusedError), _no_queries():
        wanted = _compile(queryset)
        for instance in instances:
            for name in find_names(type(instance), queryset.model):
                prefetched = getattr(instance, "_prefetched_objects_cache", {})
                if name not in prefetched and _compile(getattr(instance, name).get_queryset()) == wanted:
                    found.append((instance, name))
    if len({name for _, name in found}) != 1:
        return None
    instance, name = found[0]
    if _climbs(queryset, instance, name, stack.place):
        return None
    keys = {"pk", instance._meta.pk.attname}
    return _build(PREFETCH, name, instance, stack, keys, may_fetch_peers=False)


def _climbs(queryset: QuerySet[Any], instance: Model, name: str, place: FrameType) -> bool:
    """Return whether the line goes up or down a tree, which no queryset could have loaded."""
    # Not before there is something to advise: few processes come to it.
    from django_otel.instrumentation.changed_objects import project_frames
    from django_otel.instrumentation.climbing import climbs

    return _is_same(queryset.model, type(instance)) and climbs(project_frames(place), instance, name)


_Loader = Callable[[Any, Model, QuerySet[Any], _Stack], Advice | None]
_EVALUATION = "QuerySet._fetch_all"
_DEFERRED = "DeferredAttribute.__get__"
_DELETION = "Collector.collect"
#: Functions that build an object, and how far outside of a line of the project one is looked for.
_BUILDERS = frozenset({"Model.__init__", "Model.from_db"})
_MAX_BUILDERS = 8
#: By the qualified name of Django's function, whose variables are `self` and `instance`.
_LOADERS: dict[str, _Loader] = {
    "ForwardManyToOneDescriptor.__get__": _advise_on_forward,
    "ReverseOneToOneDescriptor.__get__": _advise_on_reverse,
    _DEFERRED: _advise_on_field,
    "GenericForeignKey.__get__": _advise_on_generic,
    "GenericForeignKeyDescriptor.__get__": _advise_on_generic,
    _EVALUATION: lambda *_: None,
}


def _is_from_query(instance: Model, place: FrameType, loader: str) -> bool:
    """Return whether a change of the queryset that loads `instance` reaches the line of `place`."""
    return not instance._state.adding and (loader == _DEFERRED or not _is_being_built(place))


def _is_being_built(place: FrameType) -> bool:
    """Return whether the line is run by a model's constructor: an overridden one, or a receiver of `post_init`."""
    frame = place.f_back
    for _ in range(_MAX_BUILDERS):
        if frame is None:
            return False
        if frame.f_code.co_qualname in _BUILDERS and is_django(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


def _loads(queryset: QuerySet[Any], model: type[Model]) -> bool:
    return queryset.model._meta.concrete_model is model._meta.concrete_model


def _find_managers(owner: type[Model], wanted: type[Model]) -> Iterator[str]:
    """Names of the managers of `owner` that lead to objects of `wanted`."""
    options = owner._meta
    for field in options.many_to_many:
        if _is_same(field.related_model, wanted):
            yield field.name
    for related in options.related_objects:
        # The other side of friends of friends has no name, that of "+" one that no attribute has.
        name = None if related.hidden else related.get_accessor_name()
        if name and not related.one_to_one and _is_same(related.related_model, wanted):
            yield name
    yield from _find_generic(owner, wanted)


def _find_generic(owner: type[Model], wanted: type[Model]) -> Iterator[str]:
    """Names of the generic relations among them; a generic foreign key leads to no model in particular."""
    for private in owner._meta.private_fields:
        if getattr(private, "one_to_many", False) and _is_same(private.related_model, wanted):
            yield private.name


def _is_same(one: Any, other: type[Model]) -> bool:
    return isinstance(one, type) and issubclass(one, Model) and one._meta.concrete_model is other._meta.concrete_model


def _compile(queryset: QuerySet[Any]) -> tuple[Any, ...] | None:
    """Return a key that equal queries share; None if no query is needed, as for a relation with an empty key."""
    try:
        sql, params = queryset.query.clone().get_compiler(queryset.db).as_sql()
    except EmptyResultSet:
        return None
    state: Any = queryset
    loaded = queryset.query.deferred_loading
    return (
        sql,
        # Both only right after the manager's filter. Behind another step, such as `.all()` once more, it is another
        # queryset, which a prefetch does not fill.
        bool(queryset.query.used_aliases),
        queryset.query.filter_is_sticky,
        tuple(params),
        queryset.db,
        state._iterable_class,
        state._fields,
        state._prefetch_related_lookups,
        loaded,
    )


@contextlib.contextmanager
def _no_queries() -> Iterator[None]:
    """A manager of the project is asked for its queryset; should that need a query, there is no advice."""

    def refuse(*_: object, **__: object) -> None:
        raise _QueryRefusedError

    with contextlib.ExitStack() as stack:
        for connection in connections.all():
            for name in ("cursor", "chunked_cursor"):
                # An execute wrapper would come after Django has counted the query.
                stack.enter_context(_replaced(connection, name, refuse))
        yield


@contextlib.contextmanager
def _replaced(connection: BaseDatabaseWrapper, name: str, method: Callable[..., None]) -> Iterator[None]:
    """Have `method` for one of this thread's connection; another tool may have replaced it, too."""
    own = vars(connection)
    missing = object()
    before = own.get(name, missing)
    own[name] = method
    try:
        yield
    finally:
        if before is missing:
            del own[name]
        else:
            own[name] = before


class _QueryRefusedError(Exception):
    """A query that the project cannot change."""


# --- From which queryset. ---


def _build(
    method: str, name: str, instance: Model, stack: _Stack, keys: set[str], *, may_fetch_peers: bool
) -> Advice | None:
    """Give the path from an object that the place has in a variable, if `instance` hangs on one.

    So `item.order.customer` is a matter of the queryset that loads the items; None where that could not do it, or where
    one of the attributes `keys`, by which Django finds the object, may have changed since.
    """
    from django_otel.instrumentation.changed_objects import read_changes

    has_peers = may_fetch_peers and FETCH_ONE is not None and instance._state.fetch_mode is FETCH_ONE
    owner, path = _find_path(instance, stack)
    is_elsewhere = bool(path) and owner._state.db != instance._state.db
    if method == FIELDS and (is_elsewhere or any(step.joined_as is None for step in path)):
        # Only a queryset of its own has left the field out.
        owner, path = instance, ()
    elif method == SELECT and is_elsewhere:
        return None
    ways = (step.read_as if method == PREFETCH else step.joined_as for step in path)
    steps = [way for way in ways if way is not None]
    if len(steps) < len(path):
        return None
    if origins.is_new(owner) or (method != PREFETCH and origins.is_raw(owner)) or _comes_with_request(owner):
        return None
    changes = read_changes(stack.place, {type(instance), type(owner)})
    on_the_way = set(_find_keys(type(owner), steps))
    if method == FIELDS:
        is_changed = not changes.deleted.isdisjoint(keys) or bool(
            steps and (changes.affect(on_the_way) or not changes.joins)
        )
    else:
        is_changed = changes.affect(keys | on_the_way) or name in changes.managed
    if is_changed:
        return None
    options = owner._meta
    return Advice(method, "__".join((*steps, name)), options.label, options.db_table, has_peers and not changes.streams)


def _find_path(instance: Model, stack: _Stack) -> tuple[Model, tuple[_Step, ...]]:
    """Return the object in a variable that `instance` hangs on, and how; itself where it is in one.

    What a function was given is looked for in its caller: `str(book.author)` is a matter of the query for the books.
    """
    owner = instance
    path: tuple[_Step, ...] = ()
    for frame in itertools.islice(stack.frames(), _MAX_CALLERS):
        objects = list(_find_objects(frame))
        is_ours = is_project(frame.f_code.co_filename)
        # What a function of Django or a package keeps, a line of the project has given it, as a rule.
        kept = objects if is_ours else list(_find_in_context(frame))
        if not any(found is owner for found in objects):
            found_here = _search(owner, objects)
            if len(found_here) > 1:
                # It would be a guess which of them it came by.
                break
            if found_here:
                owner, steps = found_here[0]
                path = (*steps, *path)
            elif is_ours:
                break
        if any(found is owner for found in kept) and not (is_ours and _is_given(frame, owner)):
            owner, path = _follow_names(frame, owner, path)
            if not (is_ours and _is_given(frame, owner)):
                break
    return owner, path


def _follow_names(frame: FrameType, owner: Model, path: tuple[_Step, ...]) -> tuple[Model, tuple[_Step, ...]]:
    """Go on from an object in a variable to the one that it was read from, where the code says so."""
    from django_otel.instrumentation import naming

    for _ in range(_MAX_STEPS):
        found = naming.find_in_function(frame, owner) or naming.find_in_template(frame, owner)
        if found is None:
            break
        current = owner = found.owner
        steps = []
        for attribute in found.attributes:
            steps.append(_Step(attribute, _name_join(type(current), attribute)))
            current = current._state.fields_cache[attribute]
        path = (*steps, *path)
    return owner, path


def _comes_with_request(owner: Model) -> bool:
    """Return whether it is the request's user, or hangs on it: what Django loads by no queryset of the project."""
    found = record_of_request()
    values = vars(found.request) if found is not None and found.request is not None else {}
    users = [values[name] for name in _USERS if _is_object(values.get(name))]
    return any(owner is user for user in users) or bool(_search(owner, users))


def _is_given(frame: FrameType, instance: Model) -> bool:
    """Return whether it is an argument of the function."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return any(frame.f_locals.get(name) is instance for name in names)


def _search(instance: Model, objects: Iterable[Model]) -> list[tuple[Model, tuple[_Step, ...]]]:
    """Return the objects that `instance` hangs on, with the shortest ways; one for each kind of way."""
    level: list[tuple[Model, Model, tuple[_Step, ...]]] = [(found, found, ()) for found in objects]
    found_here: dict[tuple[type[Model], tuple[_Step, ...]], Model] = {}
    for _ in range(_MAX_STEPS):
        following = []
        for current, owner, steps in level:
            for read_as, value in list(current._state.fields_cache.items()):
                if not _is_object(value):
                    continue
                path = (*steps, _Step(read_as, _name_join(type(current), read_as)))
                if value is instance:
                    found_here[type(owner), path] = owner
                following.append((value, owner, path))
        if found_here:
            break
        level = following[:_MAX_OBJECTS]
    return [(owner, path) for (_, path), owner in found_here.items()]


def _find_keys(model: type[Model], steps: Iterable[str]) -> Iterator[str]:
    """Names of the attributes by which a path leads from object to object."""
    for step in steps:
        yield step
        try:
            field = model._meta.get_field(step)
        except FieldDoesNotExist:
            # The other end of a one-to-one field may have another name there.
            return
        yield getattr(field, "attname", step)
        if not isinstance(field.related_model, type):
            return
        model = field.related_model


def _name_join(model: type[Model], read_as: str) -> str | None:
    """Return how `select_related()` names the relation; None for one that it does not follow."""
    for field in model._meta.concrete_fields:
        if field.is_relation and field.name == read_as:
            return None if getattr(field.remote_field, "parent_link", False) else read_as
    for related in model._meta.related_objects:
        if related.one_to_one and related.get_accessor_name() == read_as:
            return related.field.related_query_name()
    return None


def _find_objects(frame: FrameType) -> Iterator[Model]:
    """The model objects in a frame's variables, or in those of a template."""
    own = (value for value in list(frame.f_locals.values()) if _is_object(value))
    yield from itertools.islice(itertools.chain(own, _find_in_context(frame)), _MAX_OBJECTS)


def _find_in_context(frame: FrameType) -> Iterator[Model]:
    """The model objects in the variables of the template that the frame renders."""
    for value in list(frame.f_locals.values()):
        if issubclass(type(value), BaseContext):
            for scope in list(value.dicts):
                yield from filter(_is_object, list(scope.values()))


def _is_object(value: object) -> bool:
    """Return whether it is a model's object itself: to ask a lazy one (`request.user`) for its class would load it."""
    return issubclass(type(value), Model)
