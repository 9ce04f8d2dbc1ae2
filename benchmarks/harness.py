"""Times several implementations of one thing, in turn, in one process.

A row file `benchmarks/rows/NAME.py` has a function `measure(small: bool) -> list[Row]` and a
docstring whose first line says what is measured. `small` shrinks the shapes, for the tests.
"""

import gc
import importlib
import importlib.metadata
import os
import pkgutil
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from benchmarks.cores import SHARED, handover_ns

MISSING = "missing"
_VARIABLES = ("OPENBLAS_", "OMP_", "MKL_", "XLA_FLAGS", "GLIBC_TUNABLES")  # they change times
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass
class Limit:
    """A figure that must hold, or a goal: value <= bound."""

    what: str
    value: float | None  # None: the peer is missing, so the must is open
    bound: float
    must: bool = True

    @property
    def status(self) -> str:
        """'pass', 'fail' or 'open'."""
        if self.value is None:
            return "open"
        return "pass" if self.value <= self.bound else "fail"


@dataclass
class Row:
    """One line of the results; times are medians of `rounds` in milliseconds per call."""

    row: str
    variant: str
    ours_ms: float | None = None  # None: the row is about accuracy
    peers: Mapping[str, float | str] = field(default_factory=dict)  # or why there is no time
    ratios: Mapping[str, float] = field(default_factory=dict)  # ours / peer
    min_ms: Mapping[str, float] = field(default_factory=dict)  # the fastest round, ours included
    cpu_ms: Mapping[str, float] = field(default_factory=dict)  # processor time, all threads
    limit_ms: float | None = None
    temp_bytes: Mapping[str, int] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    limits: Sequence[Limit] = ()
    note: str = ""  # what makes the figures doubtful
    rounds: int = 0
    load: Sequence[float] = field(default_factory=os.getloadavg)  # when the row was finished
    handover_ns: float | None = None  # from core to core and back, see benchmarks.cores


class Times(NamedTuple):
    """Milliseconds per call, by name."""

    wall: dict[str, float]  # medians
    least: dict[str, float]
    cpu: dict[str, float]  # medians
    rounds: int
    handover_ns: float | None = None  # median; taken where there is a rest before each timing


def timed(
    row: str, variant: str, times: Times, *, ours: str = "ours", absent: Mapping[str, str] = _NONE
) -> Row:
    """A row with its times and ratios.

    Args:
        row: name of the row.
        variant: what of it.
        times: from `interleaved`; "limit" in it is what this machine takes at the least.
        ours: which of the times is ours; all others but "limit" are peers.
        absent: peer -> why it was not measured.
    """
    mine = times.wall[ours]
    peers = {name: ms for name, ms in times.wall.items() if name not in (ours, "limit")}
    return Row(
        row=row,
        variant=variant,
        ours_ms=mine,
        peers={**peers, **absent},
        ratios={name: mine / ms for name, ms in peers.items()},
        min_ms=_renamed(times.least, ours),
        cpu_ms=_renamed(times.cpu, ours),
        limit_ms=times.wall.get("limit"),
        rounds=times.rounds,
        handover_ns=times.handover_ns,
    )


def _renamed(times: Mapping[str, float], ours: str) -> dict[str, float]:
    return {"ours" if name == ours else name: ms for name, ms in times.items()}


def names() -> dict[str, str]:
    """Row name -> what it measures."""
    from benchmarks import rows

    found = {}
    for module in pkgutil.iter_modules(rows.__path__):
        doc = importlib.import_module(f"benchmarks.rows.{module.name}").__doc__ or ""
        found[module.name] = doc.split("\n")[0]
    return found


def measure(name: str, *, small: bool = False) -> list[Row]:
    """The rows of one file."""
    rows: list[Row] = importlib.import_module(f"benchmarks.rows.{name}").measure(small)
    return rows


def interleaved(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, repeat: int = 1, settle: float = 0.0
) -> Times:
    """Wall and processor milliseconds of each call, taken in turn: A B C A B C ...

    Args:
        calls: name -> function; its result is waited for and then dropped.
        rounds: how often each is timed, after one untimed call.
        repeat: calls per timing, for what takes microseconds.
        settle: seconds of rest before each timing. A call with large temporaries is ready before
            they are unmapped; without a rest the next one in turn pays for that. With a rest, each
            timing also waits for cores that share a cache, two minutes in all.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    handovers: list[float] = []
    patience = time.perf_counter() + 120.0
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(settle)
            if settle:
                handovers += _together(patience)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                result = call()
            jax.block_until_ready(result)
            wall[name].append((time.perf_counter() - begin) / repeat * 1e3)
            processor[name].append((time.process_time() - begin_cpu) / repeat * 1e3)
            del result
    return Times(
        {name: median(times) for name, times in wall.items()},
        {name: min(times) for name, times in wall.items()},
        {name: median(times) for name, times in processor.items()},
        rounds,
        median(handovers) if handovers else None,
    )


def _together(until: float) -> list[float]:
    """The way between two cores, waited for to be short until then; [] where there is one core."""
    trip = handover_ns()
    while trip is not None and trip > SHARED and time.perf_counter() < until:
        time.sleep(0.2)
        trip = handover_ns()
    return [] if trip is None else [trip]


def doubts(row: Row) -> str:
    """A note where code that fills all cores did not get them, or got cores far apart.

    Peers gain differently from a second core, so a ratio taken on a busy machine may pass or fail
    where it would not on a quiet one.
    """
    return "; ".join(filter(None, (_starved(row), _apart(row))))


def _apart(row: Row) -> str:
    if row.handover_ns is None or row.handover_ns < SHARED:
        return ""
    return f"the cores share no cache: {row.handover_ns:.0f} ns from one to the other and back"


def _starved(row: Row) -> str:
    peers = {name: ms for name, ms in row.peers.items() if not isinstance(ms, str)}
    got = max((row.cpu_ms[name] / ms for name, ms in peers.items()), default=0.0)
    cores = os.cpu_count() or 1
    if got >= 0.8 * cores:
        return ""
    return f"at most {got:.1f} of {cores} cores were had; run again on a quiet machine"


def temporaries(compiled: Any) -> int:
    """Bytes of temporary buffers of a compiled jax function: the same on every machine."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def growth(call: Callable[[], Any]) -> int:
    """Bytes by which the process grows while a call runs, its result included; after a first call.

    Sampled every millisecond, for peers that say nothing of their memory.
    """
    jax.block_until_ready(call())
    gc.collect()
    begin, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(1e-3):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = jax.block_until_ready(call())
    peak[0] = max(peak[0], _resident())
    done.set()
    watcher.join()
    del result
    return peak[0] - begin


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    versions = {}
    for package in ("jax", "jaxlib", "optax", "torch", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = MISSING
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        model = lines[0] if lines else model
    return {
        "python": sys.version.split()[0],
        "versions": versions,
        "processor": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        "device": jax.devices()[0].device_kind,
    }


def show(rows: Sequence[Row]) -> str:
    """The rows as text: a table of ours and the peers under each variant, then what must hold."""
    return "\n".join(line for r in rows for line in _lines(r))


def _lines(r: Row) -> list[str]:
    load = ", ".join(f"{x:.1f}" for x in r.load)
    least = "" if r.limit_ms is None else f"; this machine's limit about {r.limit_ms:.3g} ms"
    trip = "" if r.handover_ns is None else f"; core to core and back {r.handover_ns:.0f} ns"
    lines = [f"{r.row}: {r.variant} ({r.rounds} rounds, load {load}{least}{trip})"]
    if r.ours_ms is not None:
        heads = ("median ms", "min ms", "cpu ms", "cores", "ours/peer", "temp MiB")
        lines.append(" " * 26 + "".join(f"{head:>11}" for head in heads))
        for name, ms in {"ours": r.ours_ms, **r.peers}.items():
            lines.append(
                f"  {name:24}" + (f" {ms}" if isinstance(ms, str) else _times(r, name, ms))
            )
    if r.note:
        lines.append(f"  note: {r.note}")
    for name, error in r.error.items():
        shown = error if isinstance(error, str) else "  ".join(f"{k} {v}" for k, v in error.items())
        lines.append(f"  {name:24} {shown}")
    for x in r.limits:
        kind = "must" if x.must else "goal"
        value = "-" if x.value is None else f"{x.value:.3g}"
        lines.append(f"  {kind} {x.what} <= {x.bound:g}: {value} {x.status}")
    return lines


def _times(r: Row, name: str, ms: float) -> str:
    size = r.temp_bytes.get(name)
    temporaries = None if size is None else size / 2**20
    cpu = r.cpu_ms.get(name)
    cores = None if cpu is None else cpu / ms  # far below the machine's: others were running too
    columns = (ms, r.min_ms.get(name), cpu, cores, r.ratios.get(name), temporaries)
    return "".join(f"{'' if x is None else f'{x:.4g}':>11}" for x in columns)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """What is stored."""
    stored = [
        {**asdict(r), "limits": [{**asdict(x), "status": x.status} for x in r.limits]} for r in rows
    ]
    return {"environment": environment(), "rows": stored}
