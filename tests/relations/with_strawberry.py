"""Types of strawberry without any resolver of relations."""

import strawberry
from strawberry.django.views import GraphQLView

from tests.relations import models


@strawberry.type
class Author:
    name: str


@strawberry.type
class Book:  # here
    author: Author
    editor: Author


@strawberry.type
class Query:
    @strawberry.field
    def books(self) -> list[Book]:
        return list(models.Book.objects.all())


view = GraphQLView.as_view(schema=strawberry.Schema(query=Query))
