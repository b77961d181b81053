"""Types of graphene without any resolver of relations."""

import graphene
from django.http import JsonResponse
from graphene_django.views import GraphQLView

from tests.relations import models


class Author(graphene.ObjectType):
    name = graphene.String()


class Book(graphene.ObjectType):  # here
    author = graphene.Field(Author)
    editor = graphene.Field(Author)


class Query(graphene.ObjectType):
    books = graphene.List(Book)

    def resolve_books(self, info):
        return models.Book.objects.all()


schema = graphene.Schema(query=Query)
view = GraphQLView.as_view(schema=schema)


def executed(request):
    return JsonResponse(schema.execute("{books{author{name}}}").data)
