"""Counting instructions of parts of a Python process with valgrind's callgrind.

The same program, inputs and environment give the same count to about 1 %,
whatever else the machine does, so this is the figure to steer by; wall time is
not. A process that runs under callgrind tells it what to count with client
requests: a sequence of instructions that does nothing on a real processor.
Python cannot write it, so it is kept here as machine code (valgrind.h, x86-64).
Until it asks for a count the process runs almost at its usual speed, so that
start-up is neither counted nor slow.

`run()` for a program that counts and ends; `command()` and `environment()` to
start one that is talked to. Inside: `Counter`, `count()`, `count_each()`.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

# mov rax, rdi; xor edx, edx; rol rdi, 3; rol rdi, 13; rol rdi, 61; rol rdi, 51; xchg rbx, rbx; mov rax, rdx; ret
_REQUEST_CODE = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
_TOOL_BASE = ord("C") << 24 | ord("T") << 16
_ZERO, _DUMP_AT, _START, _STOP = _TOOL_BASE + 1, _TOOL_BASE + 3, _TOOL_BASE + 4, _TOOL_BASE + 5
_TRIGGER = re.compile(r"^desc: Trigger: Client Request: (.*)$", re.MULTILINE)
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)
_FUNCTION = re.compile(r"(c?fn)=\((\d+)\)(?: (.*))?$")
_SEARCH = "find_name_in_mro"
#: Where a process started by `command()` finds its dumps.
_FOLDER = "BENCHMARK_CALLGRIND_FOLDER"


def why_not() -> str:
    """Why instructions cannot be counted here, in a sentence; "" when they can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed (apt-get install valgrind)."
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"callgrind's client requests are written for x86-64; this machine is {platform.machine()}."
    return ""


# --- Inside the counted process. ---


class Counter:
    """Inside the counted process: `count(name, function)` runs `function` and has its instructions counted."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(_REQUEST_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._send = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def _request(self, code: int, argument: int = 0) -> None:
        arguments = (ctypes.c_uint64 * 6)(code, argument, 0, 0, 0, 0)
        self._send(ctypes.addressof(arguments))

    def start(self) -> None:
        """Count from here, in all threads; what was counted before is forgotten."""
        self._request(_START)
        self._request(_ZERO)

    def dump(self, name: str) -> None:
        """Write what was counted since `start` down as `name`, and go on at the pace of counting."""
        text = ctypes.create_string_buffer(name.encode())
        self._request(_DUMP_AT, ctypes.addressof(text))

    def stop(self, name: str) -> None:
        """Write what was counted since `start` down as `name`."""
        self.dump(name)
        self._request(_STOP)

    def count(self, name: str, function: Callable[[], object]) -> None:
        """Count the instructions of one call of `function`."""
        self.start()
        function()
        self.stop(name)


@lru_cache(maxsize=1)
def _counter() -> Counter:
    return Counter()


def is_counted() -> bool:
    """Whether this process was started by `command()` with `environment()`."""
    return _FOLDER in os.environ


def count(function: Callable[[], object]) -> int:
    """Instructions of one call of `function`, of all threads meanwhile, known at once.

    The process stays slow from the first count on: to start counting, callgrind
    translates everything again, which takes longer than most of what is counted.

    Errors: `RuntimeError` in a process that was not started by `command()` with `environment()`.
    """
    if not is_counted():
        raise RuntimeError("Instructions can only be counted in a process started by callgrind.command().")
    counter = _counter()
    counter.start()
    function()
    counter.dump("at once")
    (dump,) = Path(os.environ[_FOLDER]).glob(f"out.{os.getpid()}.*")
    found = _read(dump)
    dump.unlink()
    return found["at once"]


def count_settled(function: Callable[[], object]) -> int:
    """`count()` with the garbage collector in the same state each time.

    It stays on, as in a server, but does not walk through what start-up left
    behind, which no two programs have alike: that is never collected again.
    """
    gc.collect()
    gc.freeze()
    return count(function)


def count_each(loop: Callable[[int], object], few: int, many: int, repeats: int = 3) -> float:
    """Instructions of one of the things that `loop(n)` does n times.

    The difference of two loops leaves out what a loop costs whatever its
    length; the smallest of a few counts leaves out a background thread that
    happened to run meanwhile.
    """
    found = {
        times: min(count_settled(lambda: loop(times)) for _ in range(repeats))  # noqa: B023 (called at once)
        for times in (few, many)
    }
    return (found[many] - found[few]) / (many - few)


# --- Around it. ---


def command(arguments: Sequence[str], folder: str | Path) -> list[str]:
    """The command that runs `arguments` under callgrind, with its files in `folder`."""
    return [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", "-q", f"--callgrind-out-file={folder}/out.%p", *arguments,
    ]  # fmt: skip


def environment(environ: dict[str, str], folder: str | Path) -> dict[str, str]:
    """The environment for `command()`. Hashes are fixed, so that sets and dicts are the same in every run."""
    return {**environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", _FOLDER: str(folder)}


def run(
    arguments: Sequence[str], environ: dict[str, str], python: str | os.PathLike[str] = sys.executable
) -> dict[str, int]:
    """Run `python *arguments` under callgrind; instructions by the names given to `Counter`.

    Errors: `RuntimeError` when the process fails.
    """
    return _run([str(python), *arguments], environ, _read)


def run_with_searches(arguments: Sequence[str], environ: dict[str, str]) -> dict[str, tuple[int, int]]:
    """The same; and how many of the instructions searched classes for a name that CPython's method cache had lost.

    An entry of that cache may be wanted by several names; their addresses decide, so it is chance. None where the
    interpreter has no symbols.
    """

    def read(path: Path) -> dict[str, tuple[int, int]]:
        return {name: (total, _read_searches(path)) for name, total in _read(path).items()}

    return _run([sys.executable, *arguments], environ, read)


def _run(program: Sequence[str], environ: dict[str, str], read: Callable[[Path], dict[str, Found]]) -> dict[str, Found]:
    with tempfile.TemporaryDirectory() as folder:
        whole = command(program, folder)
        variables = environment({**os.environ, **environ}, folder)
        done = subprocess.run(whole, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(whole)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found: dict[str, Found] = {}
        for path in Path(folder).iterdir():
            found.update(read(path))
        return found


def _read(path: Path) -> dict[str, int]:
    """Name and instructions of a dump; nothing of the one that is written at the end of the process."""
    with path.open("rb") as dump:
        # Between them stand megabytes; who reads this may itself be running under callgrind.
        head = dump.read(4096).decode(errors="replace")
        dump.seek(max(0, path.stat().st_size - 256))
        tail = dump.read().decode(errors="replace")
    name, totals = _TRIGGER.search(head), _TOTALS.search(tail)
    return {name[1]: int(totals[1])} if name is not None and totals is not None else {}


def _read_searches(path: Path) -> int:
    """Instructions of the calls of CPython's search for a name in a class and its bases."""
    names: dict[str, str] = {}
    called, total, is_cost = "", 0, False
    with path.open(errors="replace") as dump:
        for line in dump:
            if is_cost:
                # What a call took, with all that it called, stands in the line behind the one that names it.
                is_cost = False
                if names.get(called, "").partition("'")[0] == _SEARCH:
                    total += int(line.split()[1])
            elif line.startswith("calls="):
                is_cost = True
            elif (match := _FUNCTION.match(line)) is not None:
                # A name is written out where it comes up first.
                kind, number, name = match.groups()
                if name:
                    names[number] = name
                if kind == "cfn":
                    called = number
    return total
