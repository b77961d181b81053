"""The goods the shop opens with."""

from __future__ import annotations

from decimal import Decimal

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

PRODUCTS = (
    ("sencha", "tea", "Morning Sencha", "Bright green leaves from the first picking. Wakes you gently.", "9.80", 5000),
    ("oolong", "tea", "Mountain Oolong", "Half dark, wholly fragrant. Good for seven pours.", "14.50", 5000),
    ("earl-grey", "tea", "Rainy Day Earl Grey", "Bergamot and a little cornflower, for grey windows.", "8.40", 5000),
    ("mint", "tea", "Garden Mint", "Nothing but mint. Hot in winter, cold in summer.", "6.20", 5000),
    ("iron-pot", "pot", "Iron Pot", "Keeps warm for an hour and will outlive us all.", "64.00", 2000),
    ("glass-pot", "pot", "Glass Pot", "For those who like to watch leaves unfold.", "38.00", 2000),
    ("clay-cup", "cup", "Clay Cup", "Thrown by hand; no two are quite alike.", "17.00", 3000),
    ("moon-cup", "cup", "Moon Cup", "Thin white porcelain with a dark blue night inside.", "21.00", 0),
    ("tea-tin", "tin", "Travel Tin", "Air tight, pocket sized, holds twenty cups of tea.", "12.00", 3000),
)


def add_products(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    product = apps.get_model("shop", "Product")
    product.objects.using(schema_editor.connection.alias).bulk_create(
        product(
            sku=sku, kind=kind, name=name, description=description, price=Decimal(price), stock=stock, position=position
        )
        for position, (sku, kind, name, description, price, stock) in enumerate(PRODUCTS, start=1)
    )


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    # Going back leaves the goods where they are: orders may name them.
    operations = [migrations.RunPython(add_products, migrations.RunPython.noop)]
