"""Business events from model signals: spans, counters and a Django signal that know their transaction's outcome.

In an app's `otel.py`, found as `admin.py` is:

    from django_otel import business

    @business.register(Order)
    class OrderEvents(business.ModelEvents):
        created = "order.placed"
        transitions = {"status": {"paid": "order.paid"}}
        attributes = ("id", "total")

or in `settings.OTEL["BUSINESS"]`, with the same keys by model label. Where both
name a model, each key of the settings replaces that key of the class.

What counts as an event:

- `created`: a save that inserted a row, whatever values it has.
- `updated`: a save that updated a row.
- `transitions`: a save that wrote another value of the field than the one last
  loaded or saved through this instance. If none is known (the field was
  deferred, or assigned without loading; the result of an expression such as
  `F()` before Django 6.0), there is nothing to compare with and no event;
  nothing is ever queried.
- `deleted`: a deletion through Django's Collector. Only this key connects the
  delete signals, because with them Django loads what it deletes.
- A save that fails is not an event. Its span, which already has the SQL inside it,
  is exported as "save shop.Order" with the error and without `business.event`.
- Fixtures (`raw` saves) make no events; `bulk_create`, `bulk_update`,
  `QuerySet.update` send no signals: see `bulk`.
- A registration covers proxies and multi-table children of the model, except
  those registered themselves (the nearest registration holds); a child's row
  is also its parent's. `deleted` comes from the registered model's own row. An
  abstract class may be registered for all models that inherit from it.

`business.*` attributes keep their type as far as OpenTelemetry has it: Decimal
becomes a float where that is exact to the last digit, else text; dates, times
and durations ISO 8601; JSON values JSON; None and binary values are left out.

Importable before settings are configured.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import connections, models, router
from django.db.models.signals import ModelSignal, post_delete, post_save, pre_delete, pre_save
from django.utils.module_loading import module_has_submodule

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.config.schema import Config, Problem

if TYPE_CHECKING:
    from django_otel.business.specs import Spec, Transition

__all__ = ["ModelEvents", "autodiscover", "bulk", "install", "problems", "register", "uninstall", "unregister"]

_EVENT_KEYS = ("created", "updated", "deleted")
_KEYS = (*_EVENT_KEYS, "transitions", "attributes", "metric")


# --- registration ---------------------------------------------------------------


class ModelEvents:
    """Events of a model's saves and deletes. Subclass it and decorate the class with `register`."""

    #: Event of an insert.
    created: ClassVar[str | None] = None
    #: Event of an update.
    updated: ClassVar[str | None] = None
    #: Event of a deletion.
    deleted: ClassVar[str | None] = None
    #: {field: {value: event}}: the event of a change to the value.
    transitions: ClassVar[Mapping[str, Mapping[Any, str]]] = {}
    #: Fields recorded as `business.<field>`; "pk" is the primary key.
    attributes: ClassVar[Iterable[str]] = ()
    #: Whether the events and operations of the model are counted.
    metric: ClassVar[bool] = True


E = TypeVar("E", bound=type[ModelEvents])


@record
class _Registration:
    """One class or settings entry, as it was given. `place` is where a reader finds it."""

    model: type[models.Model] | str
    place: str
    values: Mapping[str, object]
    is_setting: bool = False


_registrations: list[_Registration] = []
_discovery_problems: list[Problem] = []


class _State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        #: The settings under which model events are observed; None while they are not.
        self.installed: Config | None = None


_state = _State()
_connected: list[tuple[ModelSignal, Callable[..., None], type[models.Model]]] = []
_patched: list[tuple[type[models.Model], str, object, object]] = []
_install_lock = threading.RLock()


def register(*targets: type[models.Model] | str) -> Callable[[E], E]:
    """Decorate a `ModelEvents` class with the models it is for: classes, or labels such as "shop.Order".

    May run before the models are ready; whether fields exist is checked later
    and reported by the system checks.

    Errors: `ImproperlyConfigured` if a target is not a model, or the decorated object not a `ModelEvents` class.
    """
    for target in targets:
        if isinstance(target, str) and target.count(".") == 1:
            continue
        if not (isinstance(target, type) and issubclass(target, models.Model)):
            raise ImproperlyConfigured(
                f'business.register() takes models or labels such as "shop.Order"; found {target!r}.'
            )
    if not targets:
        raise ImproperlyConfigured("business.register() needs a model: write @business.register(Order).")

    def decorate(events: E) -> E:
        if not (isinstance(events, type) and issubclass(events, ModelEvents)):
            raise ImproperlyConfigured(
                f"@business.register() decorates a subclass of business.ModelEvents; found {events!r}."
            )
        place = f"{events.__module__}.{events.__qualname__}"
        values = {
            name: getattr(events, name)
            for cls in events.__mro__[: events.__mro__.index(ModelEvents)]
            for name in vars(cls)
            if not name.startswith("_")
        }
        with _install_lock:
            for target in targets:
                made = _Registration(target, place, values)
                # A module that is loaded again replaces what it registered before.
                same = [known for known in _registrations if (known.model, known.place) == (target, place)]
                if same:
                    _registrations[_registrations.index(same[0])] = made
                else:
                    _registrations.append(made)
            if _state.installed is not None:
                install(_state.installed)
        return events

    return decorate


def unregister(*targets: type[models.Model] | str) -> None:
    """Take back `register` for these models (not what settings say)."""
    with _install_lock:
        _registrations[:] = [known for known in _registrations if known.model not in targets]
        if _state.installed is not None:
            install(_state.installed)


def autodiscover() -> None:
    """Import the module `otel` of every installed app that has one.

    An exception in such a module is reported by the system checks; the project still starts.
    """
    _discovery_problems.clear()
    for app_config in apps.get_app_configs():
        try:
            if app_config.module is not None and module_has_submodule(app_config.module, "otel"):
                importlib.import_module(f"{app_config.name}.otel")
        except Exception as error:
            guard.report(f"the import of {app_config.name}.otel", error)
            _discovery_problems.append(
                Problem(
                    "django_otel.E003",
                    f"{app_config.name}.otel cannot be imported: {type(error).__name__}: {error}",
                    "Its business events are not recorded until it can.",
                )
            )


# --- from registrations to specs ---------------------------------------------------


def problems(config: Config | None = None) -> list[Problem]:
    """Return the problems of the registrations in code and in `config` (default: the current settings).

    Empty when all is well. Needs the models to be ready.
    """
    if config is None:
        from django_otel.conf import get_config

        config = get_config()
    return [*_discovery_problems, *_resolve(config)[1]]


def _resolve(config: Config) -> tuple[dict[type[models.Model], Spec], list[Problem]]:
    found: list[Problem] = []
    merged: dict[type[models.Model], list[_Registration]] = {}
    settings = [
        _Registration(label, f'OTEL["BUSINESS"]["{label}"]', values, is_setting=True)
        for label, values in config.business.items()
    ]
    for registration in (*_registrations, *settings):
        model = _find_model(registration, found)
        if model is None:
            continue
        known = merged.setdefault(model, [])
        if known and known[-1].is_setting == registration.is_setting:
            found.append(
                Problem(
                    "django_otel.E005",
                    f"{model._meta.label} is registered twice: by {known[-1].place} and by {registration.place}.",
                    "Put both into one. Until then the first one holds.",
                )
            )
            continue
        known.append(registration)

    specs: dict[type[models.Model], Spec] = {}
    for cls in {cls for model in merged for cls in _family(model) if not cls._meta.abstract}:
        nearest = next(base for base in cls.__mro__ if base in merged)
        # The fault is the registered model's; reporting it once is enough.
        is_heir = cls is not nearest and not nearest._meta.abstract
        specs[cls] = _build_spec(nearest, cls, merged[nearest], [] if is_heir else found)
    unique = {(problem.id, problem.message): problem for problem in found}
    return specs, list(unique.values())


def _find_model(registration: _Registration, found: list[Problem]) -> type[models.Model] | None:
    model = registration.model
    if isinstance(model, str):
        try:
            model = apps.get_model(model)
        except (LookupError, ValueError):
            labels = [known._meta.label for known in apps.get_models()]
            by_lower = {label.lower(): label for label in labels}
            near = difflib.get_close_matches(str(model).lower(), by_lower, n=1, cutoff=0.6)
            hint = f"Did you mean {by_lower[near[0]]!r}?" if near else "Is its app in INSTALLED_APPS?"
            found.append(
                Problem("django_otel.E001", f"{registration.place} is for the model {model!r}; there is none.", hint)
            )
            return None
    if model._meta.swapped:
        message = f"{registration.place} is for {model._meta.label}, which is swapped for {model._meta.swapped}."
        found.append(Problem("django_otel.E005", message, f"Register {str(model._meta.swapped)!r}."))
        return None
    if model._meta.auto_created:
        message = f"{registration.place} is for {model._meta.label}, for which Django sends no signals."
        hint = "It is the table of a ManyToManyField; give the field a model of your own with through=."
        found.append(Problem("django_otel.E005", message, hint))
        return None
    return model


def _family(model: type[models.Model]) -> Iterator[type[models.Model]]:
    yield model
    for child in model.__subclasses__():
        yield from _family(child)


def _build_spec(
    model: type[models.Model], cls: type[models.Model], registrations: list[_Registration], found: list[Problem]
) -> Spec:
    # Here, as in all functions below: a project that registers nothing needs none of it.
    from django_otel.business.specs import Spec

    values: dict[str, Any] = {}
    for registration in registrations:
        values.update(_checked(registration, cls, found))
    return Spec(
        model=cls if model._meta.abstract else model,
        label=(cls if model._meta.abstract else model)._meta.label,
        created=values.get("created"),
        updated=values.get("updated"),
        deleted=values.get("deleted"),
        transitions=values.get("transitions", ()),
        attributes=values.get("attributes", ()),
        metric=values.get("metric", True),
    )


def _checked(registration: _Registration, cls: type[models.Model], found: list[Problem]) -> dict[str, Any]:
    """Return the usable part of a registration; problems of the rest are added to `found`."""
    values: dict[str, object] = {}

    def misfit(key: str, value: object, expected: str, hint: str = "") -> None:
        message = f"{_name(registration, key)} is {value!r}; expected {expected}."
        found.append(Problem("django_otel.E002", message, hint))

    for key, value in registration.values.items():
        if key not in _KEYS:
            # A class may have helpers of its own, but a name that holds data is a key misspelt.
            if registration.is_setting or not (
                callable(value) or isinstance(value, classmethod | staticmethod | property)
            ):
                near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.6)
                hint = f"Did you mean {near[0]!r}?" if near else "The keys are " + ", ".join(_KEYS) + "."
                message = f"{registration.place} has {key!r}, which means nothing."
                found.append(Problem("django_otel.E001", message, hint))
        elif key in _EVENT_KEYS:
            if value is None or (isinstance(value, str) and value):
                values[key] = value
            else:
                misfit(key, value, "the name of an event, such as 'order.placed'")
        elif key == "metric":
            if isinstance(value, bool):
                values[key] = value
            else:
                misfit(key, value, "True or False")
        elif key == "attributes":
            if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
                hint = f"Write ({value!r},)." if isinstance(value, str) else ""
                misfit(key, value, "a list of field names", hint)
                continue
            columns = [(name, _find_column(registration, key, cls, name, found)) for name in value]
            values[key] = tuple((f"business.{name}", column.attname) for name, column in columns if column is not None)
        elif isinstance(value, Mapping):
            values[key] = tuple(_build_transitions(registration, cls, value, found))
        else:
            misfit(key, value, "a dict of {field: {value: event}}")
    return values


def _name(registration: _Registration, key: str) -> str:
    return f'{registration.place}["{key}"]' if registration.is_setting else f"{registration.place}.{key}"


def _find_column(
    registration: _Registration, key: str, cls: type[models.Model], name: object, found: list[Problem]
) -> Any:
    """The concrete field of that name or attname; "pk" only where the primary key is one column."""
    if isinstance(name, str):
        if name == "pk" and len(cls._meta.pk_fields) == 1:
            return cls._meta.pk
        try:
            column = cls._meta.get_field(name)
        except FieldDoesNotExist:
            column = None
        if column is not None and getattr(column, "column", None) is not None:
            return column
        for candidate in cls._meta.concrete_fields:
            if candidate.attname == name:
                return candidate
    names = [candidate.name for candidate in cls._meta.concrete_fields]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    message = f"{_name(registration, key)} names {name!r}, which is not a column of {cls._meta.label}."
    hint = f"Did you mean {near[0]!r}?" if near else "Its columns are " + ", ".join(names) + "."
    found.append(Problem("django_otel.E001" if key == "transitions" else "django_otel.E002", message, hint))
    return None


def _build_transitions(
    registration: _Registration, cls: type[models.Model], value: Mapping[object, object], found: list[Problem]
) -> Iterator[Transition]:
    from django_otel.business.loaded import UNKNOWN, comparable
    from django_otel.business.specs import Transition

    for name, events in value.items():
        column = _find_column(registration, "transitions", cls, name, found)
        if column is None:
            continue
        place = f"{_name(registration, 'transitions')}[{name!r}]"
        if not isinstance(events, Mapping) or not all(isinstance(event, str) and event for event in events.values()):
            found.append(Problem("django_otel.E002", f"{place} is {events!r}; expected a dict of {{value: event}}."))
            continue
        usable = {}
        for target, event in events.items():
            value = comparable(column, target)
            if value is UNKNOWN:
                message = f"{place} has the value {target!r}, which {cls._meta.label}.{name} cannot hold."
                found.append(Problem("django_otel.E002", message))
            else:
                usable[value] = event
        yield Transition(column.attname, frozenset({column.name, column.attname}), column, usable)


# --- switching on and off ------------------------------------------------------------


def install(config: Config) -> None:
    """Connect the registrations of `config` and the code, and disconnect earlier ones.

    Nothing is connected for models that are not registered, and nothing at all with `ENABLED` False.
    """
    with _install_lock:
        uninstall()
        if not config.enabled:
            return
        if config.metrics.names != "otel":
            from django_otel.instrumentation import django_prometheus

            django_prometheus.parts.find_models = registered_labels
        specs, found = _resolve(config)
        if found:
            # In check's words, for a server that never runs the checks.
            lines = "".join(f"\n  {problem.message} {problem.hint} ({problem.id})" for problem in found)
            guard.warn_once("business" + lines, "django_otel: business events:%s", lines)
        _state.installed = config
        if not specs:
            return
        from django_otel.business import model_events
        from django_otel.business.specs import registry

        registry.specs = specs
        for cls, spec in specs.items():
            _connect(pre_save, model_events.on_pre_save, cls)
            _connect(post_save, model_events.on_post_save, cls, is_first=True)
            # A child's deletion also sends its parent's signals, for the parent's row.
            if spec.deleted and cls._meta.concrete_model is spec.model._meta.concrete_model:
                _connect(pre_delete, model_events.on_pre_delete, cls)
                _connect(post_delete, model_events.on_post_delete, cls)
        for cls in specs:
            if any(base in specs for base in cls.__mro__[1:]):
                continue
            _patch_saving(cls)
            if any(spec.is_watching for heir, spec in specs.items() if issubclass(heir, cls)):
                _patch_loading(cls)


def registered_labels() -> list[str]:
    """Return the labels (`shop.Order`) of the models whose saves are counted now, in order."""
    if _state.installed is None or "django_otel.business.specs" not in sys.modules:
        return []
    from django_otel.business.specs import registry

    return sorted({spec.label for spec in registry.specs.values() if spec.metric})


def uninstall() -> None:
    """Disconnect everything `install` connected. Events that wait for their transaction keep waiting for it."""
    with _install_lock:
        _state.installed = None
        if "django_otel.business.specs" in sys.modules:
            from django_otel.business.specs import registry

            registry.specs = {}
        while _connected:
            signal, receiver, sender = _connected.pop()
            signal.disconnect(receiver, sender=sender)
        while _patched:
            cls, name, ours, former = _patched.pop()
            # Other code may have wrapped ours since; then it stays, and only passes on.
            if cls.__dict__.get(name) is not ours:
                continue
            if former is None:
                delattr(cls, name)
            else:
                setattr(cls, name, former)


def _connect(
    signal: ModelSignal, receiver: Callable[..., None], sender: type[models.Model], is_first: bool = False
) -> None:
    signal.connect(receiver, sender=sender, weak=False)
    _connected.append((signal, receiver, sender))
    if is_first:
        # Before the receivers of the project: one of them may change and save the instance again, and what this
        # save wrote would be unknown. Django has no public way to state this order; it holds in any case.
        with guard.contained("the order of signal receivers"), signal.lock:
            signal.receivers.insert(0, signal.receivers.pop())
            signal.sender_receivers_cache.clear()


def _patch(cls: type[models.Model], name: str, ours: object) -> None:
    _patched.append((cls, name, ours, cls.__dict__.get(name)))
    setattr(cls, name, ours)


def _patch_saving(cls: type[models.Model]) -> None:
    from django_otel.business import model_events

    own = cls.__dict__.get("save_base")

    @functools.wraps(own or models.Model.save_base)
    def save_base(self: models.Model, *args: object, **kwargs: object) -> None:
        inherited: Any = super(cls, self)
        original = own.__get__(self) if own is not None else inherited.save_base
        save = model_events.open_save(self)
        if save is None:
            return original(*args, **kwargs)  # type: ignore[no-any-return]
        try:
            return original(*args, **kwargs)  # type: ignore[no-any-return]
        except BaseException as error:
            save.error_type = type(error)
            raise
        finally:
            # post_save does not come when the SQL fails; whatever happens, nothing may stay current.
            model_events.close_save(save)

    _patch(cls, "save_base", save_base)


def _patch_loading(cls: type[models.Model]) -> None:
    from django_otel.business import loaded

    own_from_db = cls.__dict__.get("from_db")

    @functools.wraps(own_from_db.__func__ if own_from_db is not None else models.Model.from_db.__func__)  # type: ignore[attr-defined]
    def from_db(actual: type[models.Model], *args: Any, **kwargs: Any) -> models.Model:
        inherited: Any = super(cls, actual)
        original = own_from_db.__get__(None, actual) if own_from_db is not None else inherited.from_db
        instance = original(*args, **kwargs)
        loaded.remember_loaded(instance)
        return instance  # type: ignore[no-any-return]

    own_refresh = cls.__dict__.get("refresh_from_db")

    @functools.wraps(own_refresh or models.Model.refresh_from_db)
    def refresh_from_db(self: models.Model, *args: object, **kwargs: object) -> None:
        inherited: Any = super(cls, self)
        original = own_refresh.__get__(self) if own_refresh is not None else inherited.refresh_from_db
        with loaded.refreshing(self):
            original(*args, **kwargs)

    _patch(cls, "from_db", classmethod(from_db))
    _patch(cls, "refresh_from_db", refresh_from_db)


# --- many at once ------------------------------------------------------------------------


@guard.guarded("business.bulk()", None)
def bulk(
    model: type[models.Model] | str, event: str, /, *, count: int, using: str | None = None, **attributes: object
) -> None:
    """Record that `event` happened `count` times, by an operation that sends no signals.

        Order.objects.bulk_create(orders)
        business.bulk(Order, "order.placed", count=len(orders), channel="import")

    One span with `business.count` and the attributes as `business.*`, and
    `count` on the counter; both follow the transaction that is open on `using`
    (default: where `model` is written to). `model` need not be registered.

    A count of 0 records nothing. Any other wrong argument is logged once; nothing is raised.
    """
    config = runtime.current().config
    if config is not None and not config.enabled:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        guard.warn_once("business.bulk", "business.bulk(%r): count is %r; expected a whole number.", event, count)
        return
    if count == 0:
        return
    if isinstance(model, str):
        model = apps.get_model(model)
    from django_otel.business.happened import Event, Happened, hand_over, start_span
    from django_otel.business.specs import Spec, spec_of

    spec = spec_of(model) or Spec(model, model._meta.label)
    alias = using or router.db_for_write(model)
    now_unix_ns = time.time_ns()
    extra = {f"business.{name}": value for name, value in attributes.items()}
    extra["business.count"] = count
    span = start_span(spec, event, now_unix_ns, None)
    happened = Happened(Event(event), spec, None, alias, span, now_unix_ns, count, extra)
    hand_over([happened], connections[alias])
