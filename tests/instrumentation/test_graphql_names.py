"""`django.view` of GraphQL requests: graphene's and strawberry's own views, and real documents."""

import json

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from django.urls import path

from django_otel.base import guard
from django_otel.instrumentation import graphql_names
from django_otel.testing import override_sampling

graphene = pytest.importorskip("graphene")
strawberry = pytest.importorskip("strawberry")
GrapheneView = pytest.importorskip("graphene_django.views").GraphQLView
strawberry_views = pytest.importorskip("strawberry.django.views")

from strawberry.schema.config import StrawberryConfig  # noqa: E402 (after the skips)

NAME, KIND = "graphql.operation.name", "graphql.operation.type"
DOCUMENT = "query Books { title } query Authors { title } mutation AddBook { add }"


class GrapheneQuery(graphene.ObjectType):
    title = graphene.String()

    def resolve_title(self, info):
        return "x"


class Add(graphene.Mutation):
    done = graphene.Boolean()

    def mutate(self, info):
        return Add(done=True)


class GrapheneMutation(graphene.ObjectType):
    add = graphene.Field(graphene.Boolean)

    def resolve_add(self, info):
        return True


@strawberry.type
class Query:
    @strawberry.field
    def title(self) -> str:
        return "x"


@strawberry.type
class Mutation:
    @strawberry.mutation
    def add(self) -> bool:
        return True


graphene_schema = graphene.Schema(query=GrapheneQuery, mutation=GrapheneMutation)
schema = strawberry.Schema(Query, Mutation, config=StrawberryConfig(batching_config={"max_operations": 10}))
VIEWS = {
    "graphene": "graphene_django.views.GraphQLView",
    "strawberry": "strawberry.django.views.GraphQLView",
    "strawberry-async": "strawberry.django.views.AsyncGraphQLView",
}
urlpatterns = [
    path("graphene/", GrapheneView.as_view(schema=graphene_schema)),
    path("graphene-batch/", GrapheneView.as_view(schema=graphene_schema, batch=True)),
    path("strawberry/", strawberry_views.GraphQLView.as_view(schema=schema)),
    path("strawberry-async/", strawberry_views.AsyncGraphQLView.as_view(schema=schema)),
]

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@pytest.fixture(autouse=True)
def _no_names(monkeypatch):
    monkeypatch.setattr(graphql_names._state, "names", set())
    guard.reset()
    yield
    assert guard.fault_counts() == {}


def post(address, content, client=None):
    """The response's JSON; of strawberry, a text where nothing was executed."""
    if address.startswith("/strawberry-async"):
        found = async_to_sync(AsyncClient().post)(address, json.dumps(content), content_type="application/json")
    else:
        found = client.post(address, json.dumps(content), content_type="application/json")
    return json.loads(found.content) if found["Content-Type"].startswith("application/json") else found.content


def described(spans):
    """View, operation and its type of the one request."""
    (request,) = [span for span in spans if span.name.startswith("POST")]
    assert not any("title" in str(value) for value in request.attributes.values())
    return tuple(request.attributes.get(key) for key in ("django.view", NAME, KIND))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        ({"query": "query Books { title }"}, "Books", "query"),
        ({"query": "mutation AddBook { add }"}, "AddBook", "mutation"),
        ({"query": DOCUMENT, "operationName": "Authors"}, "Authors", "query"),
        ({"query": DOCUMENT, "operationName": "AddBook"}, "AddBook", "mutation"),
        ({"query": "{ title }"}, None, "query"),
        ({"query": "query { title }"}, None, "query"),
        ({"query": DOCUMENT, "operationName": "title"}, None, None),
        ({"query": "query Books { missing }"}, None, None),
        ({"query": "query Books {"}, None, None),
        ({"query": "query " + "a" * 101 + " { title }"}, None, "query"),
    ],
)
def test_the_view_is_named_by_the_operation_that_is_executed(client, otel_spans, view, content, name, kind):
    """Of a document with several, the chosen one; none where nothing is executed, or where it has no name."""
    post(f"/{view}/", content, client)
    assert described(otel_spans) == (f"{VIEWS[view]}.{name}" if name else VIEWS[view], name, kind)


@pytest.mark.parametrize(("view", "name"), [("graphene", None), ("strawberry", "Books")])
def test_without_a_choice_it_is_what_the_library_executes(client, otel_spans, view, name):
    """Nothing, or the first."""
    post(f"/{view}/", {"query": DOCUMENT}, client)
    assert described(otel_spans)[1] == name


@pytest.mark.parametrize(
    ("address", "view"),
    [("/graphene-batch/", "graphene"), ("/strawberry/", "strawberry"), ("/strawberry-async/", "strawberry-async")],
)
def test_a_batch_is_named_by_what_its_operations_have_in_common(client, otel_spans, address, view):
    books, authors, add = (
        {"query": text, "id": 1}
        for text in ("query Books { title }", "query Authors { title }", "mutation AddBook { add }")
    )
    for batch, expected in (
        ([books, books], (f"{VIEWS[view]}.Books", "Books", "query")),
        ([books, authors], (VIEWS[view], None, "query")),
        ([books, authors, books], (VIEWS[view], None, "query")),
        ([books, add], (VIEWS[view], None, None)),
    ):
        otel_spans.clear()
        assert len(post(address, batch, client)) == len(batch)
        assert described(otel_spans) == expected


def test_clients_choose_no_more_than_so_many_names(client, otel_spans, monkeypatch):
    monkeypatch.setattr(graphql_names, "_MAX_NAMES", 2)
    found = []
    for name in ("A", "B", "C", "A"):
        otel_spans.clear()
        post("/graphene/", {"query": f"query {name} {{ title }}"}, client)
        found.append(described(otel_spans)[1])
    assert found == ["A", "B", None, "A"]


def test_requests_that_are_not_recorded_take_no_name(client, otel_spans):
    with override_sampling(0.0):
        post("/graphene/", {"query": "query Books { title }"}, client)
    assert graphql_names._state.names == set()


def test_without_telemetry_graphql_core_is_as_it_was(client, settings, otel_spans):
    from graphql.execution.execute import ExecutionContext

    settings.OTEL = {**settings.OTEL, "ENABLED": False}
    assert ExecutionContext.build.__func__.__module__ == ExecutionContext.__module__
    assert "__wrapped__" not in vars(ExecutionContext.build.__func__)
    assert post("/graphene/", {"query": "query Books { title }"}, client) == {"data": {"title": "x"}}


def test_operations_outside_of_a_request_are_left_alone(otel_spans):
    assert graphene_schema.execute("query Books { title }").data == {"title": "x"}
    assert len(otel_spans) == 0
