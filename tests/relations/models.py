"""One model for each way in which Django loads what belongs to an object."""

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Country(models.Model):
    name = models.CharField(max_length=100)


class Author(models.Model):
    name = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.CASCADE, null=True)


class Profile(models.Model):
    author = models.OneToOneField(
        Author, models.CASCADE, related_name="profile_of_author", related_query_name="profile"
    )
    text = models.CharField(max_length=100)


class VisibleQuerySet(models.QuerySet):
    def get(self, *args, **kwargs):
        return super().get(*args, **kwargs)


class VisibleManager(models.Manager.from_queryset(VisibleQuerySet)):
    """Hides some rows, and overrides methods as projects do."""

    def get_queryset(self):
        return super().get_queryset().filter(is_hidden=False)


class Tag(models.Model):
    name = models.CharField(max_length=100, unique=True)
    is_hidden = models.BooleanField(default=False)
    objects = VisibleManager()


class Note(models.Model):
    text = models.CharField(max_length=100)
    # Apps without migrations have their tables before those with migrations.
    content_type = models.ForeignKey(ContentType, models.CASCADE, db_constraint=False)
    object_id = models.PositiveIntegerField()
    content_object = GenericForeignKey()


class Owned(models.Model):
    """Abstract, with the line that loads the owner."""

    owner = models.ForeignKey(Author, models.CASCADE, null=True, related_name="+")

    class Meta:
        abstract = True

    @property
    def owner_name(self):
        return self.owner.name  # owner


class Book(Owned):
    title = models.CharField(max_length=100)
    text = models.TextField(default="")
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    editor = models.ForeignKey(Author, models.CASCADE, null=True, related_name="edited")
    label = models.ForeignKey(Tag, models.CASCADE, null=True, to_field="name", related_name="labelled")
    tags = models.ManyToManyField(Tag)
    notes = GenericRelation(Note)

    def save(self, *args, **kwargs):
        super().save(*args, **kwargs)

    def hand_over(self):
        self.author_id = self.editor_id

    def refresh_from_db(self, *args, **kwargs):
        super().refresh_from_db(*args, **kwargs)


class ProxyBook(Book):
    class Meta:
        proxy = True


class Novel(Book):
    """Multi-table inheritance."""

    genre = models.CharField(max_length=100, default="")


class Magazine(Owned):
    title = models.CharField(max_length=100)


class Chapter(models.Model):
    book = models.ForeignKey(Book, models.CASCADE)
    title = models.CharField(max_length=100)


class Reader(models.Model):
    """Managers that nothing leads back from, or that have a name of their own."""

    name = models.CharField(max_length=100)
    code = models.CharField(max_length=100, null=True, unique=True)
    friends = models.ManyToManyField("self")
    follows = models.ManyToManyField("self", symmetrical=False, related_name="followers")
    wishes = models.ManyToManyField(Book, related_name="+")
    mentor = models.ForeignKey("self", models.CASCADE, null=True, related_name="+")
    reads = models.ManyToManyField(Book, related_name="readers", related_query_name="reader")


class Card(models.Model):
    """Leads to its reader twice, once by a field that may be empty."""

    reader = models.ForeignKey(Reader, models.CASCADE)
    lender = models.ForeignKey(Reader, models.CASCADE, to_field="code", null=True, related_name="lent")


class Member(models.Model):
    """What belongs to a user."""

    user = models.OneToOneField("auth.User", models.CASCADE, db_constraint=False)
    books = models.ManyToManyField(Book)
