"""Operations of Ninja, whose schemas read what the operations return."""

from ninja import NinjaAPI, Schema
from ninja.orm import create_schema

from tests.relations import models

api = NinjaAPI(docs_url=None)


class AuthorSchema(Schema):
    name: str


class BookSchema(Schema):  # here
    author: AuthorSchema
    editor: AuthorSchema


@api.get("/books", response=list[BookSchema])
def books(request):
    return models.Book.objects.all()


@api.get("/rows", response=list[create_schema(models.Book, depth=1, fields=["author", "editor"])])  # here
def rows(request):
    return models.Book.objects.all()
