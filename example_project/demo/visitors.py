"""Makes varied traffic: people who look, order and get lost, and programs that use the API."""

from __future__ import annotations

import http.client
import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

_TIMEOUT_S = 15.0
_TEAS = ("sencha", "oolong", "earl-grey", "mint", "clay-cup", "tea-tin")
_NAMES = ("Ada", "Grace", "Linus", "Barbara", "Alan", "Margaret")
#: Mostly good cards; the slow bank is rare, because its visitor waits for the shop's time limit.
_CARDS = (
    ("tok_visa",) * 14 + ("tok_mastercard",) * 6 + ("tok_declined",) * 2 + ("tok_no_funds",) * 2 + ("tok_slow_bank",)
)
#: One customer in eight has a mailbox that is full: the task that sends the invoice fails.
_FULL_MAILBOXES = 0.125
_TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


@dataclass
class Results:
    """What the visitors saw. Latencies are in seconds, as the visitor feels them."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def answered(self) -> int:
        return len(self.latencies_s)

    @property
    def sent(self) -> int:
        return self.answered + self.unanswered

    @property
    def errors(self) -> int:
        """Requests without an answer or with one that says the server failed."""
        return self.unanswered + sum(count for status, count in self.statuses.items() if status >= 500)

    def percentile_s(self, share: float) -> float:
        """The latency that `share` (0 to 1) of the answered requests did not exceed: nearest rank; 0.0 without any."""
        with self.lock:
            ordered = sorted(self.latencies_s)
        if not ordered:
            return 0.0
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Visitor:
    """One browser: follows a path through the shop, keeps cookies meanwhile."""

    def __init__(self, port: int, results: Results, chance: random.Random, pace: Callable[[], bool]) -> None:
        self._port = port
        self._results = results
        self._chance = chance
        self._pace = pace
        self._cookies: dict[str, str] = {}

    def visit(self) -> None:
        """Do one of the things visitors do, chosen by weight."""
        paths: tuple[tuple[int, Callable[[], object]], ...] = (
            (26, lambda: self.get("/")),
            (10, lambda: self.get(f"/order/?product={self._chance.choice(_TEAS)}")),
            (14, self.order_in_the_browser),
            (16, self.order_by_api),
            (6, lambda: self.get("/api/products/")),
            (1, lambda: self.get("/api/products/?limit=all")),
            (4, lambda: self.get("/statement/")),
            (
                3,
                lambda: self.send(
                    "POST", "/api/orders/", json.dumps({"lines": []}), {"Content-Type": "application/json"}
                ),
            ),
            (4, lambda: self.get("/slow/")),
            (8, lambda: self.get("/delivery/")),
            (5, lambda: self.get("/sales.csv")),
            (3, lambda: self.get("/error/")),
            (3, lambda: self.get(f"/teas/{self._chance.randrange(1000)}/")),
        )
        self._cookies.clear()
        weights, actions = zip(*paths, strict=True)
        self._chance.choices(actions, weights)[0]()

    def order_in_the_browser(self) -> None:
        """Form, order, order page; a second card when the first was declined."""
        page = self.get("/order/")
        name = self._chance.choice(_NAMES)
        wanted = self._chance.sample(_TEAS, self._chance.randint(1, 3))
        order = {f"quantity-{sku}": str(self._chance.randint(1, 3)) for sku in wanted}
        order |= {"customer_name": name, "email": self._email(name), "card": self._chance.choice(_CARDS)}
        where = self._post_form("/order/", page, order)
        if where is None:
            return
        page = self.get(where)
        if page is not None and "try another card" in page:
            where = self._post_form(f"{where}pay/", page, {"card": "tok_visa"})
            if where is not None:
                self.get(where)

    def order_by_api(self) -> None:
        name = self._chance.choice(_NAMES)
        order = {
            "customer_name": name,
            "email": self._email(name),
            "card": self._chance.choice(_CARDS),
            # Sometimes something that is sold out.
            "lines": [{"sku": self._chance.choice((*_TEAS, "moon-cup")), "quantity": self._chance.randint(1, 4)}],
        }
        self.send("POST", "/api/orders/", json.dumps(order), {"Content-Type": "application/json"})

    def _email(self, name: str) -> str:
        return f"{'full' if self._chance.random() < _FULL_MAILBOXES else name.lower()}@example.com"

    def get(self, path: str) -> str | None:
        """The page's text, or None when there is none."""
        answer = self.send("GET", path)
        return answer[1] if answer is not None else None

    def _post_form(self, path: str, page: str | None, fields: Mapping[str, str]) -> str | None:
        """Send a form found in `page`; return where the shop sends us next, if anywhere."""
        token = _TOKEN.search(page or "")
        if token is None:
            return None
        body = urlencode({**fields, "csrfmiddlewaretoken": token.group(1)})
        answer = self.send("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"})
        return answer[0].get("location") if answer is not None else None

    def send(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[dict[str, str], str] | None:
        """Send one request in its turn and note how it went; None when it was not sent or not answered."""
        if not self._pace():
            return None
        sent_headers = {"User-Agent": "visitor", "Connection": "close", **headers}
        if self._cookies:
            sent_headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        # http.client, which nothing instruments: the visitors are not part of what is observed.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        started_s = time.perf_counter()
        try:
            connection.request(method, path, body, sent_headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            with self._results.lock:
                self._results.unanswered += 1
            return None
        finally:
            connection.close()
        elapsed_s = time.perf_counter() - started_s
        with self._results.lock:
            self._results.latencies_s.append(elapsed_s)
            self._results.statuses[response.status] += 1
        for name, value in response.getheaders():
            if name.lower() == "set-cookie":
                cookie, _, content = value.split(";", 1)[0].partition("=")
                self._cookies[cookie] = content
        return {name.lower(): value for name, value in response.getheaders()}, text


class Crowd:
    """Several visitors at once, together sending at most `rate` requests a second."""

    def __init__(self, port: int, rate: float, *, visitors: int = 8, seed: int | None = None) -> None:
        self.results = Results()
        self._stop = threading.Event()
        self._turn_lock = threading.Lock()
        self._interval_s = 1.0 / rate
        self._next_turn_s = 0.0
        chance = random.Random(seed)
        self._threads = [
            threading.Thread(
                target=self._live, args=(port, random.Random(chance.random())), name="visitor", daemon=True
            )
            for _ in range(visitors)
        ]

    def start(self) -> None:
        self._next_turn_s = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send nothing more and wait for the answers that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _live(self, port: int, chance: random.Random) -> None:
        visitor = Visitor(port, self.results, chance, self._wait_for_turn)
        while not self._stop.is_set():
            visitor.visit()

    def _wait_for_turn(self) -> bool:
        """Wait until one more request fits the rate; False when it is time to stop."""
        with self._turn_lock:
            now_s = time.monotonic()
            # Time without requests is lost, not made up for by a burst.
            turn_s = max(self._next_turn_s, now_s)
            self._next_turn_s = turn_s + self._interval_s
        return not self._stop.wait(max(0.0, turn_s - now_s)) and not self._stop.is_set()
