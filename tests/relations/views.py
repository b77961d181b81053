"""Views whose lines run one statement again and again; each names with a comment the line that is to blame."""

import asyncio
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib import admin
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import Count, Prefetch, Value, prefetch_related_objects
from django.db.models.signals import post_init
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.template import engines
from django.urls import path, re_path
from django.utils.functional import SimpleLazyObject
from django.views.generic import ListView

from django_otel.requests.record import find as record_of
from tests.relations.models import Author, Book, Chapter, Country, Magazine, Note, Novel, ProxyBook, Reader, Tag


def answer(found):
    return HttpResponse(str(len(list(found))))


# --- Relations. ---


def foreign_key(request):
    return answer([book.author.name for book in Book.objects.all()])  # here


def foreign_key_elsewhere(request):
    return answer([book.author.name for book in Book.objects.all()])  # here


def foreign_key_to_field(request):
    return answer([book.label.name for book in Book.objects.all()])  # here


def two_foreign_keys(request):
    return answer([(book.author.name, book.editor.name) for book in Book.objects.all()])  # here


def reverse_one_to_one(request):
    return answer([author.profile_of_author.text for author in Author.objects.all()])  # here


def reverse_foreign_key(request):
    return answer([len(book.chapter_set.all()) for book in Book.objects.all()])  # here


def reverse_in_a_loop(request):
    found = []
    for author in Author.objects.all():
        for book in author.books.all():  # here
            found.append(book.title)
    return answer(found)


def many_to_many(request):
    return answer([list(book.tags.all()) for book in Book.objects.all()])  # here


def reverse_many_to_many(request):
    return answer([list(tag.book_set.all()) for tag in Tag.objects.all()])  # here


def generic_relation(request):
    return answer([list(book.notes.all()) for book in Book.objects.all()])  # here


def generic_foreign_key(request):
    return answer([note.content_object.title for note in Note.objects.all()])  # here


def deferred(request):
    return answer([book.text for book in Book.objects.defer("text")])  # here


def only(request):
    return answer([book.text for book in Book.objects.only("title")])  # here


def proxy(request):
    return answer([book.author.name for book in ProxyBook.objects.all()])  # here


def inherited(request):
    return answer([novel.author.name for novel in Novel.objects.all()])  # here


def parent(request):
    return answer([novel.book_ptr.title for novel in Novel.objects.defer("title")])  # here


def of_the_parent_link(request):
    return answer([novel.book_ptr.author.name for novel in Novel.objects.all()])  # here


def child(request):
    found = []
    for book in Book.objects.all():
        try:
            found.append(book.novel)  # here
        except Novel.DoesNotExist:
            found.append(None)
    return answer(found)


def nested(request):
    chapters = Chapter.objects.select_related("book")
    return answer([chapter.book.author.name for chapter in chapters])  # here


def nested_manager(request):
    chapters = Chapter.objects.select_related("book")
    return answer([list(chapter.book.tags.all()) for chapter in chapters])  # here


def of_a_variable(request):
    found = []
    for book in Book.objects.all():
        author = book.author
        found.append(author.country.name)  # here
    return answer(found)


def of_two_variables(request):
    found = []
    for chapter in Chapter.objects.select_related("book"):
        book = chapter.book
        author = book.author
        found.append(author.country.name)  # here
    return answer(found)


def of_a_walrus(request):
    return answer([
        (author := book.author) and
        author.country.name  # here
        for book in Book.objects.all()
    ])  # fmt: skip


def of_an_author_and_a_book(request):
    found = []
    for author in Author.objects.all():
        for book in author.books.all():
            found.append((book, author.country.name))
    return answer(found)


def of_a_variable_with_two_origins(request):
    found = []
    for number, book in enumerate(Book.objects.all()):
        author = book.author
        if number > 100:
            author = Author.objects.first()
        found.append(author.country.name)
    return answer(found)


def of_one_of_two(request):
    """Two chains for one name, without a branch of its own for the second."""
    others = Author.objects.in_bulk()
    found = []
    for number, book in enumerate(Book.objects.all()):
        author = others[book.author_id] if number > 100 else book.author
        found.append(author.country.name)
    return answer(found)


def of_what_there_is(request):
    found = []
    for known in Author.objects.all():
        for book in known.books.all():
            author = known or book.author
            found.append(author.country.name)
    return answer(found)


def of_two_names(request):
    """The same object."""
    found = []
    for author in Author.objects.all():
        for book in author.books.all():
            writer = book.author
            found.append((writer, author.country.name))
    return answer(found)


def of_a_shared_variable(request):
    def take(given):
        nonlocal author
        author = given

    found = []
    for known in Author.objects.all():
        for book in known.books.all():
            author = book.author
            take(known)
            found.append(author.country.name)
    return answer(found)


def of_a_shared_variable_inside(request):
    def read(book):
        nonlocal author
        if book is None:
            author = book.author
        return author.country.name

    found = []
    for author in Author.objects.all():
        found += [read(book) for book in author.books.all()]
    return answer(found)


def of_a_variable_inside(request):
    found = []
    for book in Book.objects.all():
        author = book.author

        def read():
            return author.country.name  # here

        found.append(read())
    return answer(found)


def of_two_targets(request):
    found = []
    for book in Book.objects.all():
        author = writer = book.author
        found.append((author, writer.country.name))  # here
    return answer(found)


def country_name_of(book):
    author = book.author
    return author.country.name  # here


def of_a_variable_of_a_given_object(request):
    return answer([country_name_of(chapter.book) for chapter in Chapter.objects.select_related("book")])


def of_a_variable_of_a_new_object(request):
    found = []
    for key in [author.pk for author in Author.objects.all()]:
        book = Book(author_id=key)
        author = book.author
        found.append(author.country.name)  # here
    return answer(found)


def of_two_relations_elsewhere(request):
    return answer([book.author.country.name for book in Book.objects.prefetch_related("author")])  # here


def deferred_of_a_relation(request):
    books = Book.objects.select_related("author").defer("author__name")
    return answer([book.author.name for book in books])  # here


def deferred_by_a_prefetch(request):
    books = Book.objects.prefetch_related(Prefetch("author", queryset=Author.objects.defer("name")))
    return answer([book.author.name for book in books])  # here


def of_a_filtered_name(request):
    backend = engines["django"]
    text = (
        "{% for book in books %}{% with author=book.author|default:None %}{{ author.country }}{% endwith %}{% endfor %}"
    )
    return HttpResponse(backend.from_string(text).render({"books": Book.objects.all()}))


def author_name_of(book):
    return book.author.name  # here


def given_to_a_function(request):
    return answer([author_name_of(chapter.book) for chapter in Chapter.objects.select_related("book")])


def given_twice(request):
    def read(chapter):
        return author_name_of(chapter.book)

    return answer([read(chapter) for chapter in Chapter.objects.select_related("book")])


def kept_and_given(request):
    found = []
    for chapter in Chapter.objects.select_related("book"):
        book = chapter.book
        found.append(author_name_of(book))
    return answer(found)


def of_a_generic_foreign_key(request):
    notes = Note.objects.prefetch_related("content_object")
    return answer([note.content_object.author.name for note in notes])  # here


def owner_of(item):
    return item.owner.name  # here


def owners_of_two_models(request):
    return answer([owner_of(item) for item in (*Book.objects.all(), *Magazine.objects.all())])


library = {}
exec(compile("def read(book):\n    return book.author.name\n", "/usr/lib/dist-packages/library.py", "exec"), library)


def read_by_a_library(request):
    return answer([library["read"](chapter.book) for chapter in Chapter.objects.select_related("book")])  # here


def of_a_property(request):
    return answer([book.owner_name for book in Book.objects.all()])


def of_another_models_property(request):
    return answer([magazine.owner_name for magazine in Magazine.objects.all()])


def of_the_parent(request):
    found = []
    for book in Book.objects.all():
        found += [chapter.book.editor.name for chapter in book.chapter_set.all()]  # here
    return answer(found)


def by_raw(request):
    books = Book.objects.raw("SELECT * FROM relations_book")
    return answer([list(book.tags.all()) for book in books])  # here


def by_raw_and_foreign_key(request):
    books = Book.objects.raw("SELECT * FROM relations_book")
    return answer([book.author.name for book in books])  # here


def by_raw_and_path(request):
    chapters = Chapter.objects.raw("SELECT * FROM relations_chapter").prefetch_related("book")
    return answer([chapter.book.author.name for chapter in chapters])  # here


def by_iterator(request):
    return answer([book.author.name for book in Book.objects.iterator(chunk_size=5)])  # here


def saved_before(request):
    found = []
    for book in Book.objects.all():
        book.save()
        found.append(book.author.name)  # here
    return answer(found)


def read_once(request):
    book = Book.objects.get(pk=Book.objects.first().pk)
    return answer([list(book.tags.all()) for _ in range(12)])  # here


def joined_one_by_one(request):
    keys = list(Book.objects.values_list("pk", flat=True))
    return answer([Book.objects.get(pk=key).author.name for key in keys])  # here


def reverse_beside_an_empty_key(request):
    return answer([list(reader.card_set.all()) for reader in Reader.objects.all()])  # here


def friends(request):
    return answer([list(reader.friends.all()) for reader in Reader.objects.all()])  # here


def followers(request):
    return answer([list(reader.followers.all()) for reader in Reader.objects.all()])  # here


def wishes(request):
    return answer([list(reader.wishes.all()) for reader in Reader.objects.all()])  # here


def reverse_by_another_name(request):
    return answer([list(book.readers.all()) for book in Book.objects.all()])  # here


# --- No relation, or one whose cure would not help. ---


def get_by_key(request):
    return answer([Author.objects.get(pk=book.author_id) for book in Book.objects.all()])  # here


def count(request):
    return answer([book.chapter_set.count() for book in Book.objects.all()])  # here


def exists(request):
    return answer([book.chapter_set.exists() for book in Book.objects.all()])  # here


def filtered(request):
    return answer([list(book.chapter_set.filter(title="x")) for book in Book.objects.all()])  # here


def ordered(request):
    return answer([list(book.tags.order_by("name")) for book in Book.objects.all()])  # here


def of_the_user(request):
    return answer([list(request.user.groups.all()) for _ in range(12)])  # here


def of_the_users_member(request):
    return answer([list(request.user.member.books.all()) for _ in range(12)])  # here


def first(request):
    return answer([book.chapter_set.first() for book in Book.objects.all()])  # here


def sliced(request):
    return answer([list(book.chapter_set.all()[:1]) for book in Book.objects.all()])  # here


def values(request):
    return answer([list(book.chapter_set.values_list("title")) for book in Book.objects.all()])  # here


def iterated(request):
    return answer([list(book.chapter_set.all().iterator()) for book in Book.objects.all()])  # here


def refreshed(request):
    books = list(Book.objects.all())
    for book in books:
        book.refresh_from_db()  # here
    return answer(books)


def prefetched_in_vain(request):
    books = Book.objects.prefetch_related("chapter_set")
    return answer([list(book.chapter_set.all().all()) for book in books])  # here


def chained(request):
    return answer([list(book.chapter_set.all().all()) for book in Book.objects.all()])  # here


def chained_many(request):
    return answer([list(book.tags.all().all()) for book in Book.objects.all()])  # here


def chained_generic(request):
    return answer([list(book.notes.all().all()) for book in Book.objects.all()])  # here


def filtered_by_nothing(request):
    return answer([list(book.chapter_set.filter()) for book in Book.objects.all()])  # here


def of_its_database(request):
    return answer([list(book.tags.using("default")) for book in Book.objects.all()])  # here


def unsaved(request):
    keys = [author.pk for author in Author.objects.all()]
    return answer([Book(author_id=key).author.name for key in keys])  # here


def raw_deferred(request):
    books = Book.objects.raw("SELECT id, title FROM relations_book")
    return answer([book.text for book in books])  # here


def locked(request):
    with transaction.atomic():
        return answer([list(book.chapter_set.select_for_update()) for book in Book.objects.all()])  # here


def deleted(request):
    books = list(Book.objects.all())
    for book in books:
        book.delete()  # here
    return answer(books)


def filtered_by_hand(request):
    return answer([list(Book.objects.filter(author=author)) for author in Author.objects.all()])  # here


def build_books():
    return [Book(author_id=key, title="x") for key in Author.objects.values_list("pk", flat=True)]


def new(request):
    books = build_books()
    for book in books:
        book.save()
    return answer([book.author.name for book in books])  # here


def new_in_bulk(request):
    return answer([book.author.name for book in Book.objects.bulk_create(build_books())])  # here


def new_with_many(request):
    authors = [Author.objects.create(name="x") for _ in range(12)]
    return answer([list(author.books.all()) for author in authors])  # here


def new_in_bulk_with_many(request):
    authors = Author.objects.bulk_create([Author(name="x") for _ in range(12)])
    return answer([list(author.books.all()) for author in authors])  # here


def by_a_new_object(request):
    found = []
    books = {book.pk: book for book in Book.objects.all()}
    for key, book in books.items():
        chapter = Chapter.objects.create(book_id=key, title="x")
        chapter.book = book
        del book
        found.append(chapter.book.author.name)  # here
    return answer(found)


def read_one_by_one(request):
    keys = list(Book.objects.values_list("pk", flat=True))
    return answer([list(Book.objects.get(pk=key).tags.all()) for key in keys])  # here


def read_one_by_one_elsewhere(request):
    found = []
    for key in list(Author.objects.values_list("pk", flat=True)):
        author = Author.objects.filter(pk=key).first()
        found.append(list(author.books.all()))  # here
    return answer(found)


def prefetched_one_by_one(request):
    books = list(Book.objects.all())
    for book in books:
        prefetch_related_objects([book], "chapter_set")  # here
    return answer(books)


def while_built(request):
    def look(instance, **kwargs):
        found.append(instance.book.title)  # here

    found = []
    post_init.connect(look, sender=Chapter)
    try:
        return answer(Chapter.objects.all())
    finally:
        post_init.disconnect(look, sender=Chapter)


def many_while_built(request):
    def look(instance, **kwargs):
        found.append(list(instance.chapter_set.all()))  # here

    found = []
    post_init.connect(look, sender=Book)
    try:
        return answer(Book.objects.all())
    finally:
        post_init.disconnect(look, sender=Book)


# --- Objects that are changed after their query. ---


def another_key(request):
    found = []
    for book in Book.objects.all():
        book.author_id = book.editor_id
        found.append(book.author.name)  # here
    return answer(found)


def another_key_by_its_name(request):
    found = []
    for book in Book.objects.all():
        setattr(book, "author_id", book.editor_id)
        found.append(book.author.name)  # here
    return answer(found)


def another_key_before(request):
    books = list(Book.objects.all())
    for book in books:
        book.author_id = book.editor_id
    return answer([book.author.name for book in books])  # here


def give_another_key(book):
    book.author_id = book.editor_id


def another_key_by_a_function(request):
    found = []
    for book in Book.objects.all():
        give_another_key(book)
        found.append(book.author.name)  # here
    return answer(found)


def another_key_by_a_method(request):
    found = []
    for book in Book.objects.all():
        book.hand_over()
        found.append(book.author.name)  # here
    return answer(found)


def another_key_on_the_way(request):
    found = []
    for chapter in Chapter.objects.all():
        chapter.book_id = chapter.book_id
        chapter.book = Book.objects.get(pk=chapter.book_id)
        found.append(chapter.book.author.name)  # here
    return answer(found)


def another_generic_key(request):
    found = []
    for note in Note.objects.all():
        note.object_id = note.object_id + 0
        found.append(note.content_object.title)  # here
    return answer(found)


def another_primary_key(request):
    found = []
    for number, book in enumerate(Book.objects.all()):
        book.pk = 1000 + number
        found.append(list(book.chapter_set.all()))  # here
    return answer(found)


def refreshed_before(request):
    found = []
    for book in Book.objects.select_related("author"):
        book.refresh_from_db()
        found.append(book.author.name)  # here
    return answer(found)


def changed_by_its_manager(request):
    found = []
    for book in Book.objects.prefetch_related("tags"):
        book.tags.add(*book.tags.all())
        found.append(list(book.tags.all()))  # here
    return answer(found)


def deleted_field(request):
    found = []
    for book in Book.objects.all():
        del book.text
        found.append(book.text)  # here
    return answer(found)


def forgotten(request):
    found = []
    for book in Book.objects.select_related("author"):
        book._state.fields_cache.clear()
        found.append(book.author.name)  # here
    return answer(found)


def build_chain():
    """Readers of whom each has the one before as mentor; return the last."""
    readers = list(Reader.objects.order_by("pk"))
    for mentor, reader in zip(readers, readers[1:], strict=False):
        reader.mentor = mentor
    Reader.objects.bulk_update(readers, ["mentor"])
    return Reader.objects.create(name="last", mentor=readers[-1])


def climbed(request):
    reader = Reader.objects.get(pk=build_chain().pk)
    while reader.mentor_id is not None:
        reader = reader.mentor  # here
    return answer([reader])


def climb(reader):
    return climb(reader.mentor) if reader.mentor_id is not None else reader  # here


def climbed_by_recursion(request):
    return answer([climb(Reader.objects.get(pk=build_chain().pk))])


def climbed_by_two_names(request):
    reader = Reader.objects.get(pk=build_chain().pk)
    while reader.mentor_id is not None:
        mentor = reader.mentor  # here
        reader = mentor
    return answer([reader])


def climbed_to_the_end(request):
    reader = Reader.objects.get(pk=build_chain().pk)
    while reader is not None:
        reader = reader.mentor if reader.mentor_id else None  # here
    return answer([])


def climbed_by_a_list(request):
    waiting = [Reader.objects.get(pk=build_chain().pk)]
    while waiting:
        reader = waiting.pop()
        if reader.mentor_id is not None:
            waiting.append(reader.mentor)  # here
    return answer([])


def climbed_by_levels(request):
    level = [Reader.objects.get(pk=build_chain().pk)]
    while level:
        level = [reader.mentor for reader in level if reader.mentor_id is not None]  # here
    return answer([])


def mentor_of(reader):
    return reader.mentor  # here


def climbed_by_a_helper(request):
    reader = Reader.objects.get(pk=build_chain().pk)
    while reader.mentor_id is not None:
        reader = mentor_of(reader)
    return answer([reader])


def through_model_by_hand(request):
    through = Book.tags.through
    return answer([list(through.objects.filter(book=book)) for book in Book.objects.all()])  # here


def got_or_created(request):
    for number in range(12):
        Country.objects.get_or_create(name=f"country {number}")  # here
    return answer([])


def got_or_created_of_an_object(request):
    found = []
    for book in Book.objects.all():
        found.append(book.chapter_set.get_or_create(title="x"))  # here
    return answer(found)


def annotated(request):
    books = Book.objects.all()
    return answer([list(book.chapter_set.annotate(one=Value(1))) for book in books])  # here


def of_rows(request):
    rows = Book.objects.values("author_id")
    return answer([list(Author.objects.filter(pk=row["author_id"])) for row in rows])  # here


def aggregated(request):
    return answer([book.chapter_set.aggregate(Count("pk")) for book in Book.objects.all()])  # here


def contained(request):
    chapter = Chapter.objects.first()
    return answer([book.chapter_set.contains(chapter) for book in Book.objects.all()])  # here


# --- Changes that are none of the relation. ---


def another_field(request):
    found = []
    for book in Book.objects.all():
        book.title = "x"
        found.append(book.author.name)  # here
    return answer(found)


def prefetched_of_a_slice(request):
    return answer([list(book.chapter_set.all()) for book in Book.objects.all()[:12]])  # here


def of_an_annotated_queryset(request):
    return answer([book.author.name for book in Book.objects.annotate(one=Value(1))])  # here


def of_a_database(request):
    return answer([book.author.name for book in Book.objects.using("default")])  # here


def mentors(request):
    build_chain()
    return answer([reader.mentor for reader in Reader.objects.exclude(mentor=None)])  # here


def mentors_kept(request):
    build_chain()
    found = []
    for reader in Reader.objects.exclude(mentor=None):
        mentor = reader.mentor  # here
        found += [mentor]
        found.append(mentor)
    return answer(found)


def read_and_kept(request):
    found = []
    for book in Book.objects.defer("text"):
        book.text = book.text.upper()  # here
        found.append(book)
    return answer(found)


def raw_cursor(request):
    with connection.cursor() as cursor:
        for number in range(12):
            cursor.execute("SELECT %s", [number])  # here
            cursor.fetchall()
    return answer([])


def executed_many(request):
    with connection.cursor() as cursor:
        for number in range(12):
            rows = [(False, -number), (False, -1)]
            cursor.executemany("UPDATE relations_tag SET is_hidden = %s WHERE id = %s", rows)  # here
    return answer([])


def literals(request):
    with connection.cursor() as cursor:
        for number in range(12):
            cursor.execute(f"SELECT {number}")  # here
            cursor.fetchall()
    return answer([])


def created(request):
    for number in range(12):
        Country.objects.create(name=str(number))  # here
    return answer([])


def saved(request):
    author = Author.objects.first()
    for _ in range(12):
        Book(author=author).save()  # here
    return answer([])


def failing(request):
    for number in range(12):
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT missing FROM relations_tag WHERE id = %s", [number])  # here
        except Exception:
            pass
    return answer([])


def transactions(request):
    for number in range(12):
        with transaction.atomic(), transaction.atomic(), transaction.atomic():
            if number == 0:
                Country.objects.count()
    return answer([])


def several_databases(request):
    for alias in ("default", "other") * 6:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT %s", [1])  # here
            cursor.fetchall()
    return answer([])


def distinct(request, count):
    with connection.cursor() as cursor:
        for number in range(count):
            cursor.execute(f"SELECT 1 AS c{number}")
            cursor.fetchall()
    return foreign_key(request)


# --- Places. ---


def by_name(name):
    return Country.objects.filter(name=name).first()  # helper


def through_a_helper(request):
    by_name("a")
    return answer([by_name(str(number)) for number in range(11)])


def attribute_of(item, name):
    return getattr(item, name).name


def by_attribute(request, name):
    return answer([attribute_of(book, name) for book in Book.objects.all()])


def authors_by_attribute(request):
    return by_attribute(request, "author")


def editors_by_attribute(request):
    return by_attribute(request, "editor")


def both_by_attribute(request):
    return answer([attribute_of(book, name) for book in Book.objects.all() for name in ("author", "editor")])


def authors_got_by_attribute(request):
    """They have been given another key."""
    found = []
    for book in Book.objects.all():
        book.author_id = book.editor_id
        found.append(attribute_of(book, "author"))
    return answer(found)


def two_places(request, first_times, second_times):
    for _ in range(first_times):
        Country.objects.filter(name="a").first()  # first
    for _ in range(second_times):
        Country.objects.filter(name="b").first()  # second
    return answer([])


def alternating(request):
    for _ in range(12):
        Country.objects.filter(name="c").first()  # first
        Country.objects.filter(name="d").first()  # second
    return answer([])


def repeated(request, times):
    for _ in range(times):
        Country.objects.filter(name="a").first()  # here
    return answer([])


def partly_failing(request, rows, failures):
    """So many rows are written, and so many refused, by one statement."""
    for number in range(rows + failures):
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                name = f"row {number}" if number < rows else "row 0"
                cursor.execute("INSERT INTO relations_tag (name, is_hidden) VALUES (%s, %s)", [name, True])  # here
        except IntegrityError:
            pass
    Tag._base_manager.filter(is_hidden=True).delete()
    return answer([])


def repeated_by_a_helper(request, times):
    repeat(times)
    return answer([])


def repeat(times):
    for _ in range(times):
        Country.objects.filter(name="a").first()  # here


def discarded(request, times):
    repeat(times)
    record_of(request).discard()
    return answer([])


def in_a_given_template(request):
    given = {"books": Book.objects.all(), "authors": Author.objects.all(), "part": "part.html"}
    return render(request, "page.html", given)


def in_a_template(request):
    return render(request, "relations/books.html", {"books": Book.objects.all()})


def in_a_thread(request):
    def work():
        try:
            for _ in range(12):
                Country.objects.filter(name="e").first()
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return answer([])


def streamed(request):
    def chunks():
        for book in Book.objects.all():
            yield book.author.name  # here

    return StreamingHttpResponse(chunks())


class Books(ListView):
    model = Book
    template_name = "relations/books.html"
    context_object_name = "books"


class Lists(ListView):
    """All of its queries are Django's: no line of the project runs."""

    queryset = Book.objects.all()

    def render_to_response(self, context, **kwargs):
        return super().render_to_response(context, **kwargs)


def overridden(request):
    keys = [book.label.pk for book in Book.objects.select_related("label")]
    return answer([Tag.objects.get(pk=key) for key in keys])  # here


def with_a_lazy_object(request):
    user = SimpleLazyObject(lambda: evaluated.append(1))
    found = [list(book.notes.all()) for book in Book.objects.all()]  # here
    return render(request, "relations/books.html", {"books": Book.objects.all(), "user": user, "notes": found})


evaluated = []


def in_jinja(request):
    from django.template.backends.jinja2 import Jinja2

    backend = Jinja2({"NAME": "jinja", "DIRS": [Path(__file__).parent / "jinja"], "APP_DIRS": False, "OPTIONS": {}})
    return HttpResponse(backend.get_template("books.html").render({"books": Book.objects.all()}))


class BookAdmin(admin.ModelAdmin):
    list_display = ("title", "profile")

    @admin.display
    def profile(self, book):
        return book.author.profile_of_author.text  # here


class ChapterAdmin(admin.ModelAdmin):
    """No line of it runs."""

    list_display = ("title", "book__author")


site = admin.AdminSite("relations")
site.register(Book, BookAdmin)
site.register(Chapter, ChapterAdmin)


# --- Asynchronous. ---


async def awaited(request):
    found = []
    async for book in Book.objects.all():
        found.append(await Author.objects.aget(pk=book.author_id))  # here
    return answer(found)


async def in_new_threads(request):
    found = []
    for pk in [book.author_id async for book in Book.objects.all()]:
        with ThreadPoolExecutor(1) as threads:
            get = sync_to_async(Author.objects.get, thread_sensitive=False, executor=threads)
            found.append(await get(pk=pk))  # here
            threads.submit(connections.close_all).result()
    return answer(found)


async def async_for(request):
    found = []
    async for book in Book.objects.all():
        async for chapter in book.chapter_set.all():  # here
            found.append(chapter.title)
    return answer(found)


async def gathered(request):
    keys = [book.author_id async for book in Book.objects.all()]
    found = await asyncio.gather(*(Author.objects.aget(pk=key) for key in keys))  # here
    return answer(found)


async def name_of(key):
    return (await Author.objects.aget(pk=key)).name  # helper


async def in_tasks(request):
    keys = [book.author_id async for book in Book.objects.all()]
    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(name_of(key))
    return answer(keys)


async def timed(request):
    found = []
    async for book in Book.objects.all():
        found.append(await asyncio.wait_for(Author.objects.aget(pk=book.author_id), 60))  # here
    return answer(found)


async def generated(request):
    async def authors():
        async for book in Book.objects.all():
            yield await Author.objects.aget(pk=book.author_id)  # here

    return answer([author.name async for author in authors()])


async def in_sync_code(request):
    def read(book):
        return book.author.name  # here

    return answer([await sync_to_async(read)(book) async for book in Book.objects.all()])


def of_async_code(request):
    async def read(key):
        return await Author.objects.aget(pk=key)  # here

    return answer([async_to_sync(read)(book.author_id) for book in Book.objects.all()])


async def async_streamed(request):
    async def chunks():
        async for book in Book.objects.all():
            author = await Author.objects.aget(pk=book.author_id)  # here
            yield author.name

    return StreamingHttpResponse(chunks())


_TAKING = {
    "by_attribute": "<str:name>/",
    "distinct": "<int:count>/",
    "two_places": "<int:first_times>/<int:second_times>/",
    "repeated": "<int:times>/",
    "partly_failing": "<int:rows>/<int:failures>/",
    "repeated_by_a_helper": "<int:times>/",
    "discarded": "<int:times>/",
}
_PLAIN = [
    found
    for name, found in list(globals().items())
    if callable(found) and getattr(found, "__module__", "") == __name__ and not isinstance(found, type)
    and found.__code__.co_varnames[:1] == ("request",)
]  # fmt: skip
urlpatterns = [
    *(path(f"{view.__name__}/{_TAKING.get(view.__name__, '')}", view) for view in _PLAIN),
    path("books/", Books.as_view()),
    path("admin/", site.urls),
    re_path(r"^lists/$", Lists.as_view(template_name="relations/books.html")),
]
if importlib.util.find_spec("rest_framework") is not None:
    from tests.relations.rest import RestBooks

    urlpatterns.append(path("rest/", RestBooks.as_view()))
if importlib.util.find_spec("graphene_django") is not None:
    from tests.relations import with_graphene

    urlpatterns += [path("graphene/", with_graphene.view), path("executed/", with_graphene.executed)]
if importlib.util.find_spec("strawberry") is not None:
    from tests.relations import with_strawberry

    urlpatterns.append(path("strawberry/", with_strawberry.view))
if importlib.util.find_spec("ninja") is not None:
    from tests.relations import with_ninja

    urlpatterns.append(path("ninja/", with_ninja.api.urls))
