"""The shop behind the counter."""

from __future__ import annotations

from django.contrib import admin

from example_project.shop.models import Invoice, Order, OrderLine, Payment, Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("name", "kind", "price", "stock", "position")
    list_editable = ("price", "stock", "position")
    list_filter = ("kind",)
    search_fields = ("name", "sku")


class OrderLineInline(admin.TabularInline):
    model = OrderLine
    extra = 0
    autocomplete_fields = ("product",)


class PaymentInline(admin.TabularInline):
    model = Payment
    extra = 0
    can_delete = False
    readonly_fields = ("amount", "status", "reference", "reason", "created_at")

    def has_add_permission(self, request: object, obj: object = None) -> bool:
        return False


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("__str__", "customer_name", "status", "channel", "total", "created_at")
    list_filter = ("status", "channel", "created_at")
    search_fields = ("customer_name", "email")
    readonly_fields = ("key", "total", "created_at")
    inlines = (OrderLineInline, PaymentInline)


@admin.register(Payment)
class PaymentAdmin(admin.ModelAdmin):
    list_display = ("order", "amount", "status", "reference", "reason", "created_at")
    list_filter = ("status", "created_at")
    list_select_related = ("order",)
    search_fields = ("reference", "order__email")

    def has_add_permission(self, request: object) -> bool:
        return False


@admin.register(Invoice)
class InvoiceAdmin(admin.ModelAdmin):
    list_display = ("__str__", "order", "written_at")
    list_select_related = ("order",)
    raw_id_fields = ("order",)
    readonly_fields = ("written_at",)
