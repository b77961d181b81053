"""Equal queries of a request (N+1): found, counted, placed and advised on."""

import asyncio
import gc
import linecache
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import django
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models.query import QuerySet, RawQuerySet
from django.test import AsyncClient

from django_otel.base import guard
from django_otel.instrumentation import awaiting, callers, database, n_plus_one, places
from django_otel.testing import override_sampling
from tests.relations import models, views

NAME = "django.n_plus_one"
COUNTER = "django.request.n_plus_one"
SQL, COUNT, ADVICE, MODEL = "db.query.text", f"{NAME}.count", f"{NAME}.advice", f"{NAME}.model"
FILE, LINE, FUNCTION = "code.file.path", "code.line.number", "code.function.name"
VIEWS = views.__file__
#: What Django 6.1 offers as well, for relations to one object and for fields.
PEERS = ", or fetch_mode(FETCH_PEERS)" if django.VERSION >= (6, 1) else ""

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.relations.views")]


@pytest.fixture(autouse=True)
def shelf(db):
    """Twelve of everything, each with something of its own."""
    fill()
    guard.reset()
    yield
    assert guard.fault_counts() == {}


@pytest.fixture(autouse=True)
def _look_at_each(monkeypatch):
    """However often a statement came from one line in the tests before."""
    monkeypatch.setattr(n_plus_one, "TRUSTED", 10**9)


@pytest.fixture
def fresh(settings, monkeypatch):
    """A process that knows no statement, and trusts one soon."""
    monkeypatch.setattr(n_plus_one, "TRUSTED", 20)
    monkeypatch.setattr(places, "TRUSTED", 20)
    settings.OTEL = {**settings.OTEL, "DATABASE": {"N_PLUS_ONE": 9}}


@pytest.fixture
def configure(settings):
    """Settings of the database layer for this test."""

    def configure(**database):
        settings.OTEL = {**settings.OTEL, "DATABASE": database}

    return configure


def make(model, rows):
    return model.objects.bulk_create([model(**row) for row in rows])


def fill():
    numbers = range(12)
    countries = make(models.Country, [{"name": f"country {number}"} for number in numbers])
    authors = make(models.Author, [{"name": f"author {n}", "country": country} for n, country in enumerate(countries)])
    tags = make(models.Tag, [{"name": f"tag {number}"} for number in numbers])
    make(models.Profile, [{"author": author, "text": "x"} for author in authors])
    make(models.Magazine, [{"title": "x", "owner": author} for author in authors])
    make(models.Reader, [{"name": "x"} for _ in numbers])
    books = []
    for number, (author, tag) in enumerate(zip(authors, tags, strict=True)):
        book = models.Novel.objects.create(
            title=f"book {number}", author=author, editor=author, owner=author, label=tag, genre="x"
        )
        book.tags.add(tag)
        books.append(book.book_ptr)
    make(models.Chapter, [{"book": book, "title": "x"} for book in books])
    make(models.Note, [{"text": "x", "content_object": book} for book in books])
    ContentType.objects.get_for_model(models.Book)


def detections(spans):
    """The attributes of the events on the request's span."""
    (request,) = [span for span in spans if span.parent is None and span.name.startswith("GET")]
    return [dict(event.attributes) for event in request.events if event.name == NAME]


def one(spans):
    (found,) = detections(spans)
    return found


def marked_line(found):
    return linecache.getline(found[FILE], found[LINE])


# --- What is said. ---


def test_equal_queries_become_one_event_with_the_last_count(client, otel_spans, otel_metrics):
    """Statement, count, advice and the project's line, on the request's span; the counter has the route alone."""
    client.get("/foreign_key/")
    found = one(otel_spans)
    assert found[SQL].startswith('SELECT "relations_author"."id"')
    assert found[COUNT] == 12
    assert found[ADVICE] == f'select_related("author"){PEERS}'
    assert found[MODEL] == "relations.Book"
    assert found[FILE] == VIEWS
    assert found[FUNCTION].startswith("foreign_key")
    assert marked_line(found).endswith("# here\n")
    assert otel_metrics.value(COUNTER) == 1
    assert otel_metrics.series(COUNTER) == [{"http.route": "/foreign_key/"}]


@pytest.mark.heavy
@pytest.mark.parametrize("view", ["foreign_key", "many_to_many", "deferred", "through_a_helper", "in_a_template"])
@pytest.mark.parametrize("trusted", [20, 10**9])
def test_the_stack_is_walked_in_the_first_request_alone(fresh, client, monkeypatch, view, trusted):
    """Once place and cure of a statement are known they are not looked for again."""
    monkeypatch.setattr(n_plus_one, "TRUSTED", trusted)
    walks, found = [], []
    plain_walk, plain_find = n_plus_one.walk, places.find_advice
    monkeypatch.setattr(n_plus_one, "walk", lambda *given: walks.append(given) or plain_walk(*given))
    monkeypatch.setattr(places, "find_advice", lambda *given: found.append(given) or plain_find(*given))
    client.get(f"/{view}/")
    assert walks
    assert found
    walks.clear()
    found.clear()
    for _ in range(3):
        client.get(f"/{view}/")
    assert walks == found == []


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("view", "advice", "model"),
    [
        ("foreign_key", f'select_related("author"){PEERS}', "Book"),
        ("foreign_key_to_field", f'select_related("label"){PEERS}', "Book"),
        ("reverse_one_to_one", f'select_related("profile"){PEERS}', "Author"),
        ("reverse_foreign_key", 'prefetch_related("chapter_set")', "Book"),
        ("reverse_in_a_loop", 'prefetch_related("books")', "Author"),
        ("many_to_many", 'prefetch_related("tags")', "Book"),
        ("reverse_many_to_many", 'prefetch_related("book_set")', "Tag"),
        ("generic_relation", 'prefetch_related("notes")', "Book"),
        ("generic_foreign_key", f'prefetch_related("content_object"){PEERS}', "Note"),
        ("deferred", f'only() with "text" or defer() without it{PEERS}', "Book"),
        ("only", f'only() with "text" or defer() without it{PEERS}', "Book"),
        ("proxy", f'select_related("author"){PEERS}', "ProxyBook"),
        ("inherited", f'select_related("author"){PEERS}', "Novel"),
        ("child", f'select_related("novel"){PEERS}', "Book"),
        ("nested", f'select_related("book__author"){PEERS}', "Chapter"),
        ("nested_manager", 'prefetch_related("book__tags")', "Chapter"),
        ("streamed", f'select_related("author"){PEERS}', "Book"),
        ("async_for", 'prefetch_related("chapter_set")', "Book"),
        ("by_raw", 'prefetch_related("tags")', "Book"),
        ("by_raw_and_foreign_key", f'prefetch_related("author"){PEERS}', "Book"),
        ("by_raw_and_path", f'prefetch_related("book__author"){PEERS}', "Chapter"),
        ("by_iterator", 'select_related("author")', "Book"),
        ("saved_before", f'select_related("author"){PEERS}', "Book"),
        ("read_once", 'prefetch_related("tags")', "Book"),
        ("reverse_beside_an_empty_key", 'prefetch_related("card_set")', "Reader"),
        ("friends", 'prefetch_related("friends")', "Reader"),
        ("followers", 'prefetch_related("followers")', "Reader"),
        ("wishes", 'prefetch_related("wishes")', "Reader"),
        ("reverse_by_another_name", 'prefetch_related("readers")', "Book"),
        ("in_sync_code", f'select_related("author"){PEERS}', "Book"),
        ("another_field", f'select_related("author"){PEERS}', "Book"),
        ("prefetched_of_a_slice", 'prefetch_related("chapter_set")', "Book"),
        ("of_an_annotated_queryset", f'select_related("author"){PEERS}', "Book"),
        ("of_a_database", f'select_related("author"){PEERS}', "Book"),
        ("mentors", f'select_related("mentor"){PEERS}', "Reader"),
        ("mentors_kept", f'select_related("mentor"){PEERS}', "Reader"),
        ("deferred_of_a_relation", f'only() with "author__name" or defer() without it{PEERS}', "Book"),
        ("read_and_kept", f'only() with "text" or defer() without it{PEERS}', "Book"),
        ("parent", f'prefetch_related("book_ptr"){PEERS}', "Novel"),
        ("of_the_parent_link", f'prefetch_related("book_ptr__author"){PEERS}', "Novel"),
        ("given_to_a_function", f'select_related("book__author"){PEERS}', "Chapter"),
        ("given_twice", f'select_related("book__author"){PEERS}', "Chapter"),
        ("read_by_a_library", f'select_related("book__author"){PEERS}', "Chapter"),
        ("kept_and_given", f'select_related("book__author"){PEERS}', "Chapter"),
        ("of_a_generic_foreign_key", f'prefetch_related("content_object__author"){PEERS}', "Note"),
        ("books", None, None),
    ],
)
def test_the_cure_is_that_of_the_field_behind_the_query(client, otel_spans, view, advice, model):
    """For each kind: worked out from Django's own objects on the stack."""
    b"".join(client.get(f"/{view}/"))
    if advice is None:
        return
    (found,) = [each for each in detections(otel_spans) if each[SQL].startswith("SELECT")]
    assert (found[ADVICE], found[MODEL], found[COUNT]) == (advice, f"relations.{model}", 12)
    assert marked_line(found).endswith("# here\n")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "view",
    ["get_by_key", "count", "exists", "filtered", "ordered", "first", "sliced", "values", "iterated", "refreshed",
     "prefetched_in_vain", "unsaved", "prefetched_one_by_one", "raw_deferred", "filtered_by_hand", "new",
     "new_in_bulk", "new_with_many", "locked", "deleted", "new_in_bulk_with_many", "by_a_new_object", "read_one_by_one",
     "read_one_by_one_elsewhere", "while_built", "many_while_built",
     "raw_cursor", "executed_many", "literals", "created", "saved", "failing", "awaited",
     "gathered", "timed", "generated", "of_async_code", "async_streamed",
     "another_key", "another_key_by_its_name", "another_key_before", "another_key_by_a_function",
     "another_key_by_a_method", "another_key_on_the_way", "another_generic_key", "another_primary_key",
     "refreshed_before", "changed_by_its_manager", "deleted_field", "forgotten", "climbed", "climbed_by_recursion",
     "climbed_by_two_names", "climbed_to_the_end", "climbed_by_a_list", "climbed_by_levels", "climbed_by_a_helper",
     "of_a_variable_of_a_new_object", "deferred_by_a_prefetch",
     "through_model_by_hand", "got_or_created", "got_or_created_of_an_object", "annotated", "of_rows", "aggregated",
     "contained", "chained", "chained_many", "chained_generic", "filtered_by_nothing", "of_its_database"],
)  # fmt: skip
def test_no_cure_is_named_where_it_would_be_a_guess(client, otel_spans, view):
    """Queries that neither a join nor a prefetch replaces, and those of no model's field."""
    read_all(client.get(f"/{view}/"))
    # The others are what a view writes first.
    here = [each for each in detections(otel_spans) if marked_line(each).endswith("# here\n")]
    assert here and {each[COUNT] % 12 for each in here} == {0}
    assert not any(ADVICE in each or MODEL in each for each in here)
    found = here[0]
    assert found[FILE] == VIEWS
    assert marked_line(found).endswith("# here\n")


@pytest.mark.parametrize("view", ["of_the_user", "of_the_users_member"])
def test_the_requests_user_has_no_cure(client, otel_spans, django_user_model, view):
    """Its query is Django's."""
    user = django_user_model.objects.create_user("ann")
    models.Member.objects.create(user=user)
    client.force_login(user)
    client.get(f"/{view}/")
    found = one(otel_spans)
    assert marked_line(found).endswith("# here\n") and ADVICE not in found


def read_all(response):
    if response.streaming and response.is_async:
        async_to_sync(_read_async)(response)
    else:
        b"".join(response)


async def _read_async(response):
    async for _ in response:
        pass


class AuthorsElsewhere:
    """A router that has the authors in a database of their own."""

    def db_for_read(self, model, **hints):
        return "other" if model in (models.Author, models.Country) else None


@pytest.mark.django_db(databases=["default", "other"])
def test_a_relation_into_another_database_is_prefetched(client, otel_spans, settings):
    """No join leads there, nor through it."""
    for country in models.Country.objects.all():
        models.Country.objects.using("other").create(pk=country.pk, name=country.name)
    for author in models.Author.objects.all():
        values = {"pk": author.pk, "name": author.name, "country_id": author.country_id}
        models.Author.objects.using("other").create(**values)
    settings.DATABASE_ROUTERS = [f"{__name__}.AuthorsElsewhere"]
    client.get("/foreign_key_elsewhere/")
    assert one(otel_spans)[ADVICE] == f'prefetch_related("author"){PEERS}'
    otel_spans.clear()
    client.get("/of_two_relations_elsewhere/")
    assert one(otel_spans)[ADVICE] == f'prefetch_related("author__country"){PEERS}'


def test_an_object_read_by_a_query_of_its_own_is_joined(client, otel_spans):
    client.get("/joined_one_by_one/")
    _, found = detections(otel_spans)
    # It has no peers.
    assert (found[ADVICE], found[MODEL]) == ('select_related("author")', "relations.Book")


@pytest.mark.parametrize("off", [{"N_PLUS_ONE": None}, {"SPANS": False, "METRICS": False}])
def test_off_leaves_querysets_as_django_made_them(configure, off):
    """What marks the objects that no queryset could have joined."""
    assert "django_otel" in RawQuerySet.iterator.__code__.co_filename
    configure(**off)
    for method in (RawQuerySet.iterator, QuerySet.bulk_create):
        assert "django_otel" not in method.__code__.co_filename


def test_two_relations_of_one_line_are_one_event_with_both(client, otel_spans):
    """Their statement is the same, and so is the line."""
    client.get("/two_foreign_keys/")
    found = one(otel_spans)
    assert found[COUNT] == 24
    assert found[ADVICE] == f'select_related("author", "editor"){PEERS}'


@pytest.mark.parametrize(
    ("view", "first", "model"),
    [("of_a_variable", "author", "Book"), ("of_a_walrus", "author", "Book"),
     ("of_a_variable_inside", "author", "Book"), ("of_two_targets", "author", "Book"),
     ("of_a_variable_of_a_given_object", "book__author", "Chapter"), ("of_two_variables", "book__author", "Chapter")],
)  # fmt: skip
def test_a_variable_that_is_given_a_relation_is_a_step_on_the_way(client, otel_spans, view, first, model):
    """`author = book.author`, then `author.country`: the query for the books can load both."""
    client.get(f"/{view}/")
    cures = {each[ADVICE]: each for each in detections(otel_spans)}
    second = f'select_related("{first}__country"){PEERS}'
    assert set(cures) == {f'select_related("{first}"){PEERS}', second}
    assert {each[MODEL] for each in cures.values()} == {f"relations.{model}"}
    assert marked_line(cures[second]).endswith("# here\n")


@pytest.mark.parametrize(
    "view",
    ["of_an_author_and_a_book", "of_a_variable_with_two_origins", "of_a_filtered_name", "of_one_of_two",
     "of_what_there_is", "of_two_names", "of_a_shared_variable", "of_a_shared_variable_inside"],
)  # fmt: skip
def test_a_variable_that_may_have_its_object_from_elsewhere_is_no_step(client, otel_spans, view):
    """That a book has this author proves nothing: it may have it from the author's related manager."""
    client.get(f"/{view}/")
    cures = {each[ADVICE]: each[MODEL] for each in detections(otel_spans) if "country" in each.get(ADVICE, "")}
    assert cures == {f'select_related("country"){PEERS}': "relations.Author"}


@pytest.mark.parametrize(
    "text",
    [
        "{% with author=book.author %}{{ author.country.name }}{% endwith %}",
        "{% with book.author as author %}{{ author.country.name }}{% endwith %}",
        "{% with author=book.author %}{% with writer=author %}{{ writer.country.name }}{% endwith %}{% endwith %}",
        "{% with author=book.author %}{% for _ in 'a' %}{{ author.country.name }}{% endfor %}{% endwith %}",
        "{% with author=book.author %}{% if author.country %}{% endif %}{% endwith %}",
        "{% with author=book.author country=book.author.country %}{% endwith %}",
        "{% include part with author=book.author %}",
        "{% include part with author=book.author only %}",
    ],
)
def test_a_name_that_a_templates_tag_gives_is_a_step_on_the_way(client, otel_spans, settings, tmp_path, text):
    (tmp_path / "part.html").write_text("{{ author.country.name }}")
    (tmp_path / "page.html").write_text(f"{{% for book in books %}}{text}{{% endfor %}}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]
    client.get("/in_a_given_template/")
    cures = {each[ADVICE]: each[MODEL] for each in detections(otel_spans)}
    assert cures.pop(f'select_related("author__country"){PEERS}') == "relations.Book"
    assert cures == {f'select_related("author"){PEERS}': "relations.Book"}


@pytest.mark.parametrize(
    "inside",
    [
        "{% with writer=book.author %}{{ author.country.name }}{% endwith %}",
        "{% include part with writer=book.author %}",
    ],
)
def test_a_tags_name_for_an_object_that_has_another_name_is_no_step(client, otel_spans, settings, tmp_path, inside):
    text = "{% for author in authors %}{% for book in author.books.all %}" + inside + "{% endfor %}{% endfor %}"
    (tmp_path / "part.html").write_text("{{ author.country.name }}")
    (tmp_path / "page.html").write_text(text)
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]
    client.get("/in_a_given_template/")
    cures = {each[ADVICE]: each[MODEL] for each in detections(otel_spans)}
    assert cures == {
        'prefetch_related("books")': "relations.Author",
        f'select_related("country"){PEERS}': "relations.Author",
    }


def test_cures_of_several_models_at_one_line_are_told_by_model(client, otel_spans):
    """A view is one line for all that a serializer loads."""
    client.get("/owners_of_two_models/")
    found = one(otel_spans)
    cure = f'select_related("owner"){PEERS}'
    assert found[ADVICE] == f"relations.Book: {cure}; relations.Magazine: {cure}"
    assert MODEL not in found and found[COUNT] == 24


def test_a_line_that_several_models_share_is_advised_on_by_view(client, otel_spans):
    """A property of an abstract model: the line is in the model."""
    client.get("/of_a_property/")
    found = one(otel_spans)
    assert (found[ADVICE], found[MODEL]) == (f'select_related("owner"){PEERS}', "relations.Book")
    assert found[FILE] == models.__file__
    assert marked_line(found).endswith("# owner\n")
    otel_spans.clear()
    client.get("/of_another_models_property/")
    found = one(otel_spans)
    assert (found[ADVICE], found[MODEL]) == (f'select_related("owner"){PEERS}', "relations.Magazine")


def test_a_helper_is_advised_on_for_the_relation_that_each_view_gives_it(client, otel_spans):
    """The statement, the line and the class are the same."""
    for view, advice in (
        ("authors_by_attribute", '"author"'),
        ("editors_by_attribute", '"editor"'),
        ("both_by_attribute", '"author", "editor"'),
        ("authors_by_attribute", '"author"'),
        ("authors_got_by_attribute", None),
    ):
        otel_spans.clear()
        client.get(f"/{view}/")
        wanted = None if advice is None else f"select_related({advice}){PEERS}"
        assert one(otel_spans).get(ADVICE) == wanted, view


# --- Where. ---


def test_a_template_is_named_with_its_line(client, otel_spans):
    """Also one that is included."""
    client.get("/in_a_template/")
    found = {(Path(each[FILE]).name, each[LINE]): each for each in detections(otel_spans)}
    assert set(found) == {("books.html", 4), ("books.html", 5), ("country.html", 2)}
    assert {each[FUNCTION] for each in found.values()} == {"template"}
    assert {each[COUNT] for each in found.values()} == {12}
    assert found["books.html", 4][ADVICE] == f'select_related("author"){PEERS}'
    assert found["books.html", 5][ADVICE] == 'prefetch_related("chapter_set")'
    assert found["country.html", 2][ADVICE] == f'select_related("owner"){PEERS}'


def test_a_jinja_template_is_named_with_its_line(client, otel_spans):
    pytest.importorskip("jinja2")
    client.get("/in_jinja/")
    found = one(otel_spans)
    assert (Path(found[FILE]).name, found[LINE], found[FUNCTION]) == ("books.html", 4, "template")
    assert found[ADVICE] == f'select_related("author"){PEERS}'


def test_a_method_that_calls_the_one_it_overrides_is_not_the_place(client, otel_spans):
    """A queryset's `get`; the line that calls it is."""
    client.get("/overridden/")
    assert marked_line(one(otel_spans)).endswith("# here\n")


def test_without_a_line_of_the_project_its_class_is_the_place(client, otel_spans):
    """A REST framework view of attributes alone."""
    pytest.importorskip("rest_framework")
    client.get("/rest/")
    assert {Path(each[FILE]).name for each in detections(otel_spans)} == {"rest.py"}
    by_advice = {each[ADVICE]: each for each in detections(otel_spans)}
    assert set(by_advice) == {f'select_related("author"){PEERS}', 'prefetch_related("chapter_set")'}
    assert {linecache.getline(each[FILE], each[LINE]).split("(")[0] for each in by_advice.values()} == {
        "class BookSerializer"
    }


@pytest.mark.parametrize("url", ["/ninja/books", "/ninja/rows"])
def test_what_ninja_reads_for_the_project_is_the_place(client, otel_spans, url):
    """A schema, and the operation of one that Ninja has made itself."""
    pytest.importorskip("ninja")
    client.get(url)
    found = one(otel_spans)
    assert Path(found[FILE]).name == "with_ninja.py"
    assert found[FUNCTION] == {"/ninja/books": "BookSchema", "/ninja/rows": "rows"}[url]
    assert marked_line(found).endswith("# here\n")
    assert found[ADVICE] == f'select_related("author", "editor"){PEERS}'


@pytest.mark.parametrize("library", ["graphene", "strawberry"])
def test_a_field_of_graphql_is_a_place_of_its_own(client, otel_spans, library):
    """One view answers all operations."""
    pytest.importorskip({"graphene": "graphene_django"}.get(library, library))
    for fields in (["author", "editor"], ["author"], ["editor"]):
        otel_spans.clear()
        client.get(f"/{library}/?query={{books{{{''.join(f'{field}{{name}}' for field in fields)}}}}}")
        found = detections(otel_spans)
        assert {each[FUNCTION]: each[ADVICE] for each in found} == {
            f"Book.{field}": f'select_related("{field}"){PEERS}' for field in fields
        }
        assert {each[COUNT] for each in found} == {12}
        assert {Path(each[FILE]).name for each in found} == {f"with_{library}.py"}
        assert {marked_line(each).partition("  # ")[2] for each in found} == {"here\n"}


@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_line_further_out_is_the_place_where_there_is_one(fresh, client, otel_spans, monkeypatch, is_trusted):
    """Also when the same code of a library ran before without one."""
    pytest.importorskip("graphene_django")
    if not is_trusted:
        monkeypatch.setattr(n_plus_one, "TRUSTED", 10**9)
    url = "/graphene/?query={books{author{name}}}"
    for _ in range(3):
        client.get(url)
    assert one_of_last(otel_spans)[FUNCTION] == "Book.author"
    for visited, function in (("/executed/", "executed"), (url, "Book.author")):
        client.get(visited)
        found = one_of_last(otel_spans)
        assert (found[FUNCTION], found[COUNT]) == (function, 12)


def test_the_admins_lists_are_named_by_their_lines_or_classes(admin_client, otel_spans):
    admin_client.get("/admin/relations/book/")
    by_advice = {each[ADVICE]: each for each in detections(otel_spans)}
    assert marked_line(by_advice[f'select_related("author"){PEERS}']).endswith("# here\n")
    otel_spans.clear()
    admin_client.get("/admin/relations/chapter/")
    found = detections(otel_spans)
    assert {each[FUNCTION] for each in found} == {"ChapterAdmin"}
    assert {each[ADVICE] for each in found} == {
        f'select_related("book"){PEERS}',
        f'select_related("book__author"){PEERS}',
    }
    assert {each[MODEL] for each in found} == {"relations.Chapter"}


def test_advice_evaluates_no_lazy_object(client, otel_spans):
    """A request's user, in a variable or a template's context, may not be loaded yet."""
    views.evaluated.clear()
    client.get("/with_a_lazy_object/")
    assert len(detections(otel_spans)) == 4
    assert views.evaluated == []


def test_a_helper_of_the_project_is_the_place_whoever_calls_it(client, otel_spans):
    client.get("/through_a_helper/")
    found = one(otel_spans)
    assert (found[COUNT], found[FUNCTION]) == (12, "by_name")


def test_two_places_are_counted_apart(client, otel_spans, otel_metrics):
    """The same statement from two lines: each with its own count, and neither with the other's."""
    client.get("/two_places/12/15/")
    found = {marked_line(each).split("# ")[1]: each[COUNT] for each in detections(otel_spans)}
    assert found == {"first\n": 12, "second\n": 15}
    assert otel_metrics.value(COUNTER) == 2
    otel_spans.clear()
    client.get("/two_places/9/9/")
    client.get("/two_places/9/10/")
    client.get("/alternating/")
    counts = [[dict(event.attributes)[COUNT] for event in span.events] for span in otel_spans if span.parent is None]
    assert counts == [[], [10], [12, 12]]


def test_requests_are_counted_apart(client, otel_spans, otel_metrics):
    """Nine queries each are no tenth."""
    for _ in range(3):
        client.get("/repeated/9/")
    assert otel_metrics.value(COUNTER) == 0
    client.get("/repeated/10/")
    assert otel_metrics.value(COUNTER) == 1


@pytest.mark.django_db(transaction=True)
def test_a_thread_of_its_own_is_not_part_of_the_request(client, otel_metrics):
    client.get("/in_a_thread/")
    assert otel_metrics.value(COUNTER) == 0


def test_transaction_control_is_not_counted(client, otel_metrics):
    client.get("/transactions/")
    assert otel_metrics.value(COUNTER) == 0


@pytest.mark.django_db(databases=["default", "other"])
def test_a_statement_is_the_same_on_every_database(client, otel_spans):
    """Replicas that a router chooses from in turn share the work of one line."""
    client.get("/several_databases/")
    assert one(otel_spans)[COUNT] == 12


def test_tasks_of_the_request_are_part_of_it(client, otel_spans):
    """The place is the line that awaits, in the task's own coroutine."""
    client.get("/in_tasks/")
    found = one(otel_spans)
    assert (found[COUNT], found[FUNCTION]) == (12, "name_of")


# --- On, off, and without recording. ---


class Eager(ThreadPoolExecutor):
    """Ends its work before the caller goes on, as a thread that has just begun may."""

    def submit(self, *args, **kwargs):
        future = super().submit(*args, **kwargs)
        wait([future])
        return future


@pytest.mark.parametrize("can_look_at_other_threads", [True, False])
def test_work_that_is_not_waited_for_yet_is_from_the_line_that_hands_it_in(monkeypatch, can_look_at_other_threads):
    """Never from a line of a package, which would be taken for the place of all following queries."""
    monkeypatch.setattr(awaiting, "HAS_GLOBAL_LOCK", can_look_at_other_threads)

    async def ask(threads):
        return await sync_to_async(callers.find_caller, thread_sensitive=False, executor=threads)()

    with Eager(1) as threads:
        found = async_to_sync(ask)(threads)
    if can_look_at_other_threads:
        assert (found[FILE], found[LINE]) == (__file__, ask.__code__.co_firstlineno + 1)
    else:
        assert found == {}


@pytest.mark.parametrize("was_enabled", [True, False])
def test_no_garbage_is_collected_while_other_threads_are_looked_at(monkeypatch, was_enabled):
    """Before Python 3.12 other threads go on then, and a frame that is being read may be gone."""
    monkeypatch.setattr(awaiting, "_COLLECTS_ANYTIME", True)
    collects, plain = [], sys._current_frames
    monkeypatch.setattr(awaiting.sys, "_current_frames", lambda: collects.append(gc.isenabled()) or plain())
    (gc.enable if was_enabled else gc.disable)()
    try:
        with Eager(1) as threads:
            threads.submit(callers.find_caller)
        assert collects and not any(collects)
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()


def test_other_threads_are_not_looked_at_where_something_waits(monkeypatch):
    """The look takes the longer the more threads there are."""
    looks, plain = [], sys._current_frames
    monkeypatch.setattr(awaiting.sys, "_current_frames", lambda: looks.append(1) or plain())
    begins = threading.Event()

    async def ask(threads):
        find = sync_to_async(callers.find_caller, thread_sensitive=False, executor=threads)
        asyncio.get_running_loop().call_soon(begins.set)
        return await find()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(begins.wait)
        assert async_to_sync(ask)(threads)[FUNCTION].endswith("ask")
    assert looks == []


def test_work_that_a_waiting_tasks_task_hands_in_is_from_the_line_that_waits():
    """`gather` makes a task of each coroutine, whose stack has no line of the project."""

    async def ask(threads):
        find = sync_to_async(callers.find_caller, thread_sensitive=False, executor=threads)
        return await asyncio.gather(find(), find())

    with Eager(2) as threads:
        found = async_to_sync(ask)(threads)
    assert [(each.get(FILE), each.get(LINE)) for each in found] == [(__file__, ask.__code__.co_firstlineno + 2)] * 2


def test_work_that_is_done_before_its_coroutine_waits_is_from_the_line_that_hands_it_in(monkeypatch):
    """It may begin only after it was handed in."""
    begins, plain = threading.Event(), asyncio.shield

    def shield(arg):
        begins.set()
        threads.shutdown()
        return plain(arg)

    async def ask():
        return await sync_to_async(callers.find_caller, thread_sensitive=False, executor=threads)()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(begins.wait)
        monkeypatch.setattr(asyncio, "shield", shield)
        try:
            found = async_to_sync(ask)()
        finally:
            begins.set()
    assert (found.get(FILE), found.get(LINE)) == (__file__, ask.__code__.co_firstlineno + 1)


def test_what_runs_the_event_loop_is_no_place_of_what_its_tasks_hand_in():
    """A task for which nothing waits, in a loop that a line of the project runs."""

    async def ask(threads):
        asked = sync_to_async(callers.find_caller, thread_sensitive=False, executor=threads)
        task = asyncio.get_running_loop().create_task(asked())
        while not task.done():
            await asyncio.sleep(0)
        return task.result()

    with Eager(1) as threads, asyncio.Runner() as runner:
        assert runner.run(ask(threads)) == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("executor", [ThreadPoolExecutor, Eager])
def test_a_query_that_a_new_thread_runs_before_its_coroutine_waits_is_counted(
    monkeypatch, client, otel_spans, executor
):
    monkeypatch.setattr(views, "ThreadPoolExecutor", executor)
    client.get("/in_new_threads/")
    found = one(otel_spans)
    assert (found[COUNT], found[FUNCTION]) == (12, "in_new_threads")
    line = Path(VIEWS).read_text(encoding="utf-8").splitlines()[found[LINE] - 1]
    assert line.endswith("# here")


def test_requests_that_are_not_recorded_are_counted_all_the_same(client, otel_spans, otel_metrics):
    with override_sampling(0.0):
        client.get("/foreign_key/")
    assert len(otel_spans) == 0
    assert otel_metrics.value(COUNTER, http__route="/foreign_key/") == 1


@pytest.mark.parametrize(("limit", "found"), [(None, 0), (2, 1), (12, 1), (13, 0)])
def test_the_limit_is_a_setting(client, configure, otel_metrics, limit, found):
    configure(N_PLUS_ONE=limit)
    client.get("/repeated/12/")
    assert otel_metrics.value(COUNTER) == found


def test_without_texts_of_statements_the_event_has_none(client, configure, otel_spans):
    configure(STATEMENT="off")
    client.get("/repeated/12/")
    found = one(otel_spans)
    assert SQL not in found
    assert found[COUNT] == 12


def test_queries_without_spans_are_counted_too(client, configure, otel_spans):
    configure(SPANS=False)
    client.get("/repeated/12/")
    assert one(otel_spans)[COUNT] == 12


def test_outside_of_a_request_nothing_is_reported(otel_metrics):
    for _ in range(20):
        views.by_name("x")
    assert otel_metrics.value(COUNTER) == 0


# --- Bounds and faults. ---


def test_many_statements_of_a_request_hide_none_and_use_little_memory(client, otel_spans, monkeypatch):
    monkeypatch.setattr(n_plus_one, "_MAX_PLACES", 50)
    monkeypatch.setattr(n_plus_one, "_MAX_STATEMENTS", 60)
    client.get("/distinct/300/")
    assert one(otel_spans)[COUNT] == 12
    watch = database._state.settings.watch
    assert len(watch._statements) <= 60


def test_a_statement_run_from_very_many_places_stays_bounded(client, otel_spans, monkeypatch):
    monkeypatch.setattr(n_plus_one, "_MAX_SITES", 1)
    client.get("/alternating/")
    assert sum(each[COUNT] for each in detections(otel_spans)) <= 24


def test_a_fault_of_ours_does_not_reach_the_view(client, otel_spans, monkeypatch):
    def fail(*args):
        raise RuntimeError("ours")

    monkeypatch.setattr(n_plus_one.Watch, "note", fail)
    assert client.get("/repeated/12/").status_code == 200
    queries = [span for span in otel_spans if span.parent is not None]
    assert len(queries) == 12
    assert guard.fault_counts() == {"counting equal queries": 12}
    guard.reset()


def test_advice_runs_no_query(client, django_assert_num_queries, monkeypatch):
    """Even if a manager of the project needs one to build its queryset."""
    with django_assert_num_queries(13):
        client.get("/reverse_many_to_many/")
    monkeypatch.setattr(models.VisibleManager, "get_queryset", _greedy)
    with django_assert_num_queries(1 + 2 * 12):
        client.get("/many_to_many/")


def _greedy(self):
    return models.VisibleQuerySet(self.model, using=self._db).exclude(pk=models.Country.objects.count() + 10_000)


# --- Statements that have always come from one line. ---


def test_counts_of_a_trusted_statement_are_exact(fresh, client, otel_spans, monkeypatch):
    """The stack is looked at by the ninth query of a request alone."""
    looks, plain = [], n_plus_one._getframe
    client.get("/repeated/30/")
    monkeypatch.setattr(n_plus_one, "_getframe", lambda depth: looks.append(depth) or plain(depth + 1))
    for times, seen in ((8, 0), (9, 1), (12, 1), (20, 2)):
        otel_spans.clear()
        looks.clear()
        client.get(f"/repeated/{times}/")
        assert [each[COUNT] for each in detections(otel_spans)] == ([times] if times > 8 else [])
        assert len(looks) == seen


def test_a_statement_that_another_request_makes_trusted_meanwhile_is_counted_exactly(fresh, client, otel_spans):
    """In another thread: so many of this one's queries were counted by their place."""
    seen = []

    def trust(execute, sql, *more):
        seen.append(sql)
        if len(seen) == 5:
            for known in database._state.settings.watch._statements.values():
                known.is_trusted = True
        return execute(sql, *more)

    with connection.execute_wrapper(trust):
        client.get("/repeated_by_a_helper/12/")
    assert one(otel_spans)[COUNT] == 12
    otel_spans.clear()
    client.get("/repeated_by_a_helper/12/")
    assert one(otel_spans)[COUNT] == 12


def test_queries_of_threads_that_begin_to_count_a_request_at_once_are_counted(client, otel_spans, monkeypatch):
    """What one of them has counted meanwhile is not lost."""
    begun = []

    class Interrupted(n_plus_one.Repeats):
        """Is interrupted by another thread's query while it is made."""

        __slots__ = ()

        def __init__(self, watch):
            if not begun:
                begun.append(1)
                views.by_name("x")
            super().__init__(watch)

    monkeypatch.setattr(n_plus_one, "Repeats", Interrupted)
    client.get("/through_a_helper/")
    assert begun
    assert one(otel_spans)[COUNT] == 13


def test_a_trusted_statement_from_another_line_is_that_lines(fresh, client, otel_spans):
    """When it comes from there for the first time; from then on each query is looked at."""
    client.get("/repeated/30/")
    otel_spans.clear()
    client.get("/two_places/12/0/")
    found = one(otel_spans)
    assert (found[COUNT], marked_line(found).split("# ")[1]) == (12, "first\n")
    otel_spans.clear()
    client.get("/two_places/12/15/")
    assert {marked_line(each).split("# ")[1]: each[COUNT] for each in detections(otel_spans)} == {
        "first\n": 12,
        "second\n": 15,
    }
    otel_spans.clear()
    client.get("/repeated/10/")
    assert one(otel_spans)[COUNT] == 10


def test_the_cure_of_a_trusted_statement_is_kept(fresh, client, otel_spans, otel_metrics):
    for _ in range(4):
        otel_spans.clear()
        client.get("/foreign_key/")
        assert one(otel_spans)[ADVICE] == f'select_related("author"){PEERS}'
    with override_sampling(0.0):
        client.get("/foreign_key/")
    assert otel_metrics.value(COUNTER, http__route="/foreign_key/") == 5


@pytest.mark.heavy
def test_another_relation_is_noticed_by_one_request_in_ten(fresh, client, otel_spans, monkeypatch):
    """To ask each query's stack for it would cost as much as all else."""
    asked, plain = [], places.read_subject
    monkeypatch.setattr(places, "read_subject", lambda frame: asked.append(frame) or plain(frame))
    for _ in range(50):
        client.get("/by_attribute/author/")
    asked.clear()
    for _ in range(10):
        client.get("/by_attribute/author/")
    assert len(asked) == 1
    assert one_of_last(otel_spans)[ADVICE] == f'select_related("author"){PEERS}'
    for _ in range(10):
        client.get("/by_attribute/editor/")
    assert one_of_last(otel_spans)[ADVICE] == f'select_related("author", "editor"){PEERS}'


def test_another_view_of_a_trusted_statement_is_advised_at_once(fresh, client, otel_spans):
    for _ in range(50):
        client.get("/of_a_property/")
    client.get("/of_another_models_property/")
    found = one_of_last(otel_spans)
    assert (found[ADVICE], found[MODEL]) == (f'select_related("owner"){PEERS}', "relations.Magazine")


def one_of_last(spans):
    """The one event of the last request."""
    (event,) = [event for event in list(spans)[-1].events if event.name == NAME]
    return dict(event.attributes)


def counts_of(spans):
    """Of the events of each request, in the order of their ends."""
    requests = [span for span in spans if span.name.startswith("GET")]
    return [[dict(event.attributes)[COUNT] for event in span.events if event.name == NAME] for span in requests]


@pytest.mark.parametrize(
    ("rows", "failures", "counts"), [(8, 0, []), (5, 3, []), (5, 4, [9]), (1, 8, [9]), (9, 9, [18])]
)
def test_failed_queries_of_a_trusted_statement_are_counted_with_the_others(
    fresh, client, otel_spans, rows, failures, counts
):
    client.get("/partly_failing/30/0/")
    otel_spans.clear()
    client.get(f"/partly_failing/{rows}/{failures}/")
    found = [each[COUNT] for each in detections(otel_spans) if each[SQL].startswith("INSERT")]
    assert found == counts


@pytest.mark.django_db(databases=["default", "other"])
@pytest.mark.parametrize("view", ["several_databases", "literals"])
def test_trusted_queries_of_one_statement_are_added_up(fresh, client, otel_spans, view):
    """From several databases, and as several SQL texts: none of them has as many as are reported."""
    for _ in range(40):
        otel_spans.clear()
        client.get(f"/{view}/")
        assert counts_of(otel_spans) == [[12]]


def test_a_request_that_is_discarded_leaves_the_count_of_the_next_exact(fresh, client, otel_spans):
    client.get("/repeated_by_a_helper/30/")
    client.get("/discarded/12/")
    for times, expected in ((8, [[]]), (9, [[9]]), (12, [[12]])):
        otel_spans.clear()
        client.get(f"/repeated_by_a_helper/{times}/")
        assert counts_of(otel_spans) == expected, times


def test_requests_that_share_a_connection_do_not_mix_their_counts(fresh, client, otel_spans):
    """Asynchronous views run their queries in one thread."""
    client.get("/awaited/")
    client.get("/awaited/")
    otel_spans.clear()

    async def visit():
        clients = [AsyncClient() for _ in range(3)]
        await asyncio.gather(*(each.get("/awaited/") for each in clients))

    async_to_sync(visit)()
    requests = [span for span in otel_spans if span.parent is None]
    counts = [[event.attributes[COUNT] for event in span.events if event.name == NAME] for span in requests]
    assert counts == [[12]] * 3
