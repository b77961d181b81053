"""The client of the payment gateway, which is another service."""

from __future__ import annotations

from decimal import Decimal

import requests
from django.conf import settings


class CardDeclinedError(Exception):
    """The gateway answered, and the answer is no. The text is for the customer."""


class GatewayUnavailableError(Exception):
    """The gateway did not answer in time or not in words we understand. The text is for the customer."""


def charge(*, key: str, amount: Decimal, card: str) -> str:
    """Charge `amount` euros to a card and return the gateway's reference.

    `key` makes asking again safe: the gateway charges once for each key.

    Errors: `CardDeclinedError`, `GatewayUnavailableError`; nothing else of the network
    reaches the caller. Waits at most `settings.PAYMENT_TIMEOUT_S` seconds for
    the connection and as long again for each part of the answer.
    """
    try:
        response = requests.post(
            f"{settings.PAYMENT_GATEWAY_URL}/charges/",
            json={"key": key, "amount": str(amount), "card": card},
            timeout=settings.PAYMENT_TIMEOUT_S,
            allow_redirects=False,
        )
        answer = response.json()
        reason = str(answer.get("reason", ""))
        if response.status_code == 402:
            raise CardDeclinedError(reason or "The card was declined.")
        if response.status_code == 201:
            return str(answer["id"])
    except requests.Timeout:
        raise GatewayUnavailableError("The bank took too long to answer.") from None
    except (requests.RequestException, ValueError, AttributeError, KeyError):
        # Also an answer that is not JSON, no object, or has no reference.
        raise GatewayUnavailableError("The payment service cannot be reached.") from None
    raise GatewayUnavailableError(f"The payment service answered {response.status_code}.")
