"""A make-believe payment gateway: no money moves, every card is a test card."""

from __future__ import annotations

import json
import time
import uuid
from decimal import Decimal, InvalidOperation
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

import django_otel

charges = django_otel.counter("gateway.charges", unit="{charge}", description="Charges asked for, by outcome.")

#: Test card -> (seconds the bank thinks about it, reason for declining or None).
CARDS: dict[str, tuple[float, str | None]] = {
    "tok_visa": (0.02, None),
    "tok_mastercard": (0.04, None),
    "tok_declined": (0.02, "The bank declined the card."),
    "tok_no_funds": (0.03, "The account has not enough money."),
    # Longer than the shop is willing to wait.
    "tok_slow_bank": (3.0, None),
}


@csrf_exempt  # Called by servers, which hold no cookies.
@require_POST
def create_charge(request: HttpRequest) -> HttpResponse:
    """Charge a card: 201 captured, 402 declined, 400 for a request that makes no sense.

    The charge's id follows from the caller's idempotency key, so that asking
    again after a timeout does not charge twice.
    """
    try:
        key, amount, card = parse_charge(request.body)
    except ValueError as error:
        charges.add(1, {"outcome": "invalid"})
        return JsonResponse({"status": "invalid", "reason": str(error)}, status=400)
    think_s, declined_because = CARDS[card]
    with django_otel.span("ask_bank", **{"charge.amount": float(amount)}):
        time.sleep(think_s)
        if declined_because is not None:
            django_otel.event("bank_declined", reason=declined_because)
    if declined_because is not None:
        charges.add(1, {"outcome": "declined"})
        return JsonResponse({"status": "declined", "reason": declined_because}, status=402)
    charges.add(1, {"outcome": "captured"})
    return JsonResponse({"status": "captured", "id": f"ch_{uuid.uuid5(uuid.NAMESPACE_OID, key).hex[:20]}"}, status=201)


def parse_charge(body: bytes) -> tuple[str, Decimal, str]:
    """Idempotency key, amount and card of a charge.

    Errors: `ValueError` with a sentence for the caller.
    """
    try:
        data: Any = json.loads(body)
    except ValueError:
        raise ValueError("The body is not JSON.") from None
    if not isinstance(data, dict):
        raise ValueError("Expected a JSON object.")
    key, card = data.get("key"), data.get("card")
    if not isinstance(key, str) or not key:
        raise ValueError("key is missing.")
    if not isinstance(card, str) or card not in CARDS:
        raise ValueError("card is not one of the test cards.")
    try:
        amount = Decimal(str(data.get("amount")))
    except InvalidOperation:
        raise ValueError("amount is not a number.") from None
    if not amount.is_finite() or amount <= 0:
        raise ValueError("amount must be more than zero.")
    return key, amount, card
