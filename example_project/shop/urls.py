"""The shop's pages and API."""

from __future__ import annotations

from django.urls import path

from example_project.shop import views

app_name = "shop"
urlpatterns = [
    path("", views.product_list, name="products"),
    path("order/", views.order_new, name="order-new"),
    path("orders/<uuid:key>/", views.order_page, name="order"),
    path("orders/<uuid:key>/pay/", views.order_pay, name="order-pay"),
    path("api/products/", views.api_products, name="api-products"),
    path("api/orders/", views.api_orders, name="api-orders"),
    path("slow/", views.slow, name="slow"),
    path("error/", views.error, name="error"),
    path("delivery/", views.delivery, name="delivery"),
    path("statement/", views.statement, name="statement"),
    path("sales.csv", views.sales_csv, name="sales"),
]
