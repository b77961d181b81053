"""Instructions that a piece of Python executes, counted by valgrind's callgrind.

The same program, inputs and environment give the same count to about 1 %,
whatever else the machine does, so this is the figure to steer by; wall time is
not. A process started with `command()` runs almost at its usual speed until it
asks for a count itself, with `count()`: start-up is neither counted nor slow.

Needs valgrind (Debian: `apt-get install valgrind`), Linux and an x86-64 processor.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

#: callgrind.h: VG_USERREQ_TOOL_BASE('C', 'T') and what follows it.
_BASE = (ord("C") << 24) | (ord("T") << 16)
_DUMP_STATS, _ZERO_STATS, _START, _STOP = _BASE, _BASE + 1, _BASE + 4, _BASE + 5
#: valgrind.h: VG_USERREQ__RUNNING_ON_VALGRIND.
_RUNNING_ON_VALGRIND = 0x1001
#: A function (request) -> answer around the client request of valgrind.h for amd64. Valgrind knows the five
#: instructions in the middle; to the processor they do nothing. Through ctypes it needs no compiler.
_CLIENT_REQUEST = bytes.fromhex(
    "48 89 f8"  # mov rax, rdi: the six words of the request
    "31 d2"  # xor edx, edx: the answer without valgrind
    "48 c1 c7 03  48 c1 c7 0d  48 c1 c7 3d  48 c1 c7 33"  # rol rdi by 3, 13, 61, 51: as it was
    "48 87 db"  # xchg rbx, rbx
    "48 89 d0  c3"  # mov rax, rdx; ret
)
_ENVIRONMENT = {
    # Sets and dicts of strings in one order, and no code that differs from run to run.
    "PYTHONHASHSEED": "0",
    # A first run writes bytecode, a second one reads it.
    "PYTHONDONTWRITEBYTECODE": "",
}


def why_not() -> str:
    """Why instructions cannot be counted here, in a sentence; "" when they can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "Instructions are counted on Linux with an x86-64 processor."
    if shutil.which("valgrind") is None:
        return "valgrind is missing (Debian: apt-get install valgrind)."
    return ""


def command(arguments: list[str], folder: Path) -> list[str]:
    """The command that runs `arguments` so that it can call `count()`; it leaves its files in `folder`."""
    return [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet",
        # Other ways to run threads one at a time are unfair or not repeatable.
        "--fair-sched=no", f"--callgrind-out-file={folder}/callgrind.%p", *arguments,
    ]  # fmt: skip


def environment(environ: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment for `command()`."""
    return {**environ, **_ENVIRONMENT, "BENCHMARK_CALLGRIND": str(folder)}


@lru_cache(maxsize=1)
def _request_function() -> Callable[[int], int]:
    # Kept by the function's attribute: unmapped it would crash.
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_CLIENT_REQUEST)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    prototype = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
    function = prototype(address)
    words = ctypes.c_uint64 * 6

    def ask(request: int) -> int:
        asked = words(request, 0, 0, 0, 0, 0)
        return int(function(ctypes.addressof(asked)))

    ask.page = page  # type: ignore[attr-defined]
    return ask


def is_counting_possible() -> bool:
    """Whether this process runs under valgrind, started by `command()`."""
    return "BENCHMARK_CALLGRIND" in os.environ and not why_not() and bool(_request_function()(_RUNNING_ON_VALGRIND))


def count(function: Callable[[], object]) -> int:
    """Instructions of one call of `function`, of all threads while it lasts.

    Errors: `RuntimeError` when the process was not started by `command()`.
    """
    if not is_counting_possible():
        raise RuntimeError("Instructions can only be counted in a process started by callgrind.command().")
    ask = _request_function()
    folder = Path(os.environ["BENCHMARK_CALLGRIND"])
    ask(_ZERO_STATS)
    ask(_START)
    function()
    ask(_STOP)
    before = set(folder.glob(f"callgrind.{os.getpid()}.*"))
    ask(_DUMP_STATS)
    (dump,) = set(folder.glob(f"callgrind.{os.getpid()}.*")) - before
    found = re.search(rb"^totals: (\d+)", dump.read_bytes(), re.MULTILINE)
    if not os.environ.get("BENCHMARK_KEEP_DUMPS"):
        dump.unlink()
    if found is None:
        raise RuntimeError(f"callgrind wrote no total into {dump}.")
    return int(found.group(1))


def count_each(loop: Callable[[int], object], low: int, high: int, warm_up: int = 0) -> float:
    """Instructions of one of the things that `loop(n)` does n times.

    The difference of two loops leaves out what a loop costs whatever its
    length. The garbage collector stays on, as in a server, but does not walk
    through what start-up left behind, which no two programs have alike.
    """
    if warm_up:
        loop(warm_up)
    gc.collect()
    gc.freeze()
    few = count(lambda: loop(low))
    many = count(lambda: loop(high))
    gc.unfreeze()
    return (many - few) / (high - low)
