"""Draws the dashboards of docs/images/ from the demo shop: `python -m tests.recorded.pictures` (six minutes).

Serves the shop as the test of the panels does, has a real Prometheus scrape it, and visits it for as long as the
pictures show; then `docs/build_dashboard_pictures.py` asks Prometheus what Grafana would ask.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import tempfile
import threading
import time
from pathlib import Path

from tests import services
from tests.operations import test_panels as panels
from tests.recorded import record


def main() -> None:
    """Serve, visit, draw."""
    spec = importlib.util.spec_from_file_location("drawing", services.ROOT / "docs" / "build_dashboard_pictures.py")
    assert spec is not None and spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        postgres = stack.enter_context(services.start_postgres())
        extra = {
            "DATABASE_URL": stack.enter_context(services.new_database(postgres)),
            "REDIS_URL": stack.enter_context(services.start_valkey()),
        }
        ports, env = stack.enter_context(panels.serve_shop(folder, extra, most_series=20))
        prometheus = stack.enter_context(panels.prometheus(folder, ports, "5s"))
        is_over = threading.Event()
        visitors = [threading.Thread(target=keep_visiting, args=(ports, is_over)) for _ in range(2)]
        for visitor in visitors:
            visitor.start()
        end_s = time.monotonic() + 60 * drawing.MINUTES + 20
        try:
            while time.monotonic() < end_s:
                record.manage(env, "restock")
                panels.chat(ports["sockets"])
                panels.spoil_a_slot(folder)
                time.sleep(10)
        finally:
            is_over.set()
            for visitor in visitors:
                visitor.join()
        drawing.main(prometheus.url)


def keep_visiting(ports: dict[str, int], is_over: threading.Event) -> None:
    chance = random.Random(1)
    while not is_over.wait(chance.uniform(0.0, 0.6)):
        panels.visit(ports[chance.choice(("shop", "shop", "shop", "sockets"))])


if __name__ == "__main__":
    main()
