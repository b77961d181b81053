"""A REST framework view without any code of its own."""

from rest_framework.generics import ListAPIView
from rest_framework.renderers import JSONRenderer
from rest_framework.serializers import ModelSerializer, StringRelatedField

from tests.relations.models import Book


class BookSerializer(ModelSerializer):
    author = StringRelatedField()
    chapter_set = StringRelatedField(many=True)

    class Meta:
        model = Book
        fields = ("title", "author", "chapter_set")


class RestBooks(ListAPIView):
    """No line of it runs."""

    queryset = Book.objects.all()
    serializer_class = BookSerializer
    renderer_classes = (JSONRenderer,)
    authentication_classes = permission_classes = ()
