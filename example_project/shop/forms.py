"""What a visitor may send us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms

from example_project.shop.models import Product

#: Test cards of the payment gateway. Real card numbers have no place here.
CARDS = (
    ("tok_visa", "Visa ending in 4242"),
    ("tok_mastercard", "Mastercard ending in 5454"),
    ("tok_declined", "Visa ending in 0002 (the bank says no)"),
    ("tok_no_funds", "Visa ending in 9995 (not enough money)"),
    ("tok_slow_bank", "Visa ending in 0044 (the bank takes too long)"),
)
MOST_OF_ONE_PRODUCT = 20


class CardForm(forms.Form):
    """The card to pay with."""

    card = forms.ChoiceField(choices=CARDS, initial=CARDS[0][0], widget=forms.RadioSelect, label="Pay with")


class CustomerForm(CardForm):
    """Who orders, and how they pay."""

    field_order = ("customer_name", "email", "card")

    customer_name = forms.CharField(max_length=80, label="Name", widget=forms.TextInput(attrs={"autocomplete": "name"}))
    email = forms.EmailField(label="E-mail", widget=forms.EmailInput(attrs={"autocomplete": "email"}))


class OrderForm(CustomerForm):
    """The order form: a quantity for each product beside the customer's fields."""

    def __init__(self, products: Sequence[Product], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.products = products
        for product in products:
            self.fields[self.quantity_name(product)] = forms.IntegerField(
                label=product.name,
                min_value=0,
                max_value=MOST_OF_ONE_PRODUCT,
                required=False,
                disabled=product.stock == 0,
                widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
            )

    @staticmethod
    def quantity_name(product: Product) -> str:
        return f"quantity-{product.sku}"

    def product_rows(self) -> list[tuple[Product, forms.BoundField]]:
        return [(product, self[self.quantity_name(product)]) for product in self.products]

    def lines(self) -> list[tuple[Product, int]]:
        """The products that are wanted, with their quantities."""
        quantities = ((product, self.cleaned_data.get(self.quantity_name(product))) for product in self.products)
        return [(product, quantity) for product, quantity in quantities if quantity]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if not self.lines() and not any(name.startswith("quantity-") for name in self.errors):
            raise forms.ValidationError("Choose at least one product.")
        return cleaned


def parse_lines(data: Mapping[str, Any]) -> list[tuple[Product, int]]:
    """The `lines` of an order that came as JSON: `[{"sku": "...", "quantity": 2}, ...]`.

    Errors: `forms.ValidationError` with a sentence for the caller.
    """
    lines = data.get("lines")
    if not isinstance(lines, list) or not lines:
        raise forms.ValidationError('Expected a list like [{"sku": "sencha", "quantity": 1}].')
    quantities: dict[str, int] = {}
    for line in lines:
        sku, quantity = (line.get("sku"), line.get("quantity")) if isinstance(line, dict) else (None, None)
        if not isinstance(sku, str):
            raise forms.ValidationError("Each line needs a sku.")
        # True is an int in Python, and no quantity.
        if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= MOST_OF_ONE_PRODUCT:
            raise forms.ValidationError(f"The quantity must be a whole number from 1 to {MOST_OF_ONE_PRODUCT}.")
        if sku in quantities:
            raise forms.ValidationError("Each product may stand in one line only.")
        quantities[sku] = quantity
    products = Product.objects.in_bulk(quantities, field_name="sku")
    if len(products) < len(quantities):
        raise forms.ValidationError("One of the products is unknown; GET /api/products/ lists them.")
    return [(products[sku], quantity) for sku, quantity in quantities.items()]
