"""How far apart two processor cores are.

The cores of a virtual machine may or may not share a cache, and a host may move them while a
benchmark runs. Code whose threads hand results to each other is up to 1.6 times as slow where they
do not; code that streams through memory does not notice, so that ratios between the two shift.
"""

import mmap
import os
import subprocess
import sys
import tempfile
import time

SHARED = 250.0  # nanoseconds: below, two cores share a cache
_PARTS, _TRIPS = 10, 1000
_ANSWER = f"""
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    line = mmap.mmap(file.fileno(), {mmap.PAGESIZE})
line[1] = 1
for _ in range({_PARTS * _TRIPS}):
    while not line[0]:
        pass
    line[0] = 0
"""


def handover_ns() -> float | None:
    """Nanoseconds for a byte to go to another core and back, the interpreter's time included.

    About 170 where the two share a cache, 350 and more where they do not; None on one core. The
    best of ten parts, so that it matters little what else is running.
    """
    if (os.cpu_count() or 1) < 2:
        return None
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        line = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", _ANSWER, file.name])
        while not line[1] and child.poll() is None:
            time.sleep(1e-3)
        if child.poll() is not None:
            return None
        best = min(_part(line) for _ in range(_PARTS))
        child.wait()
    return best


def _part(line: mmap.mmap) -> float:
    begin = time.perf_counter()
    for _ in range(_TRIPS):
        line[0] = 1
        while line[0]:
            pass
    return (time.perf_counter() - begin) / _TRIPS * 1e9
