"""Django signals of this package.

`business_event` is sent once for each business event, when its outcome is known:

- `sender`: the model registered for the event (for `business.bulk`, the model given to it);
- `event`: the event's name, such as "order.placed";
- `model`: the model's label, such as "shop.Order";
- `instance`: what was saved or deleted, as it is now; None for `business.bulk`;
- `count`: how many events this is: 1, or the count given to `business.bulk`;
- `outcome`: "committed", "rolled_back" or "autocommit";
- `attributes`: a dict with the span's attributes, as they were at the event, whether or not a span is recorded;
- `using`: the alias of the database.

It is sent with `send_robust`: an exception in a receiver is logged by Django
and has no effect on the caller. After a commit the connection is out of the transaction, as it
is in `transaction.on_commit`; after a rollback to a savepoint the transaction
around it is still open. In a transaction with more than
`transactions.PENDING_LIMIT` events the signal is not sent for those beyond it.

`sampling_changed` is sent when rows of the sampling policy were changed, within
their transaction; `using` is the alias of the database. The package's own
processes listen to it and apply the policy once it is committed.
`log_levels_changed` is the same for temporary log levels.
"""

from __future__ import annotations

from django.dispatch import Signal

business_event = Signal()
sampling_changed = Signal()
log_levels_changed = Signal()
