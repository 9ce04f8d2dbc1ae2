"""Times several implementations of one thing, in turn, in one process.

A row file `benchmarks/rows/NAME.py` has a function `measure(small: bool) -> list[Row]` and a
docstring whose first line says what is measured. `small` shrinks the shapes, for the tests.
"""

import importlib
import importlib.metadata
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import jax

MISSING = "missing"


@dataclass
class Limit:
    """A figure that must hold, or a goal: value <= bound."""

    what: str
    value: float | None  # None: the peer is missing, so the must is open
    bound: float
    must: bool = True

    @property
    def status(self) -> str:
        """'holds', 'fails' or 'open'."""
        if self.value is None:
            return "open"
        return "holds" if self.value <= self.bound else "fails"


@dataclass
class Row:
    """One line of the results."""

    row: str
    variant: str
    ours_ms: float
    peers: Mapping[str, float | str] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)  # ours / peer
    cpu_ms: Mapping[str, float] = field(default_factory=dict)  # processor time, all threads
    limit_ms: float | None = None
    temp_bytes: Mapping[str, int] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    limits: Sequence[Limit] = ()
    rounds: int = 0


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
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, repeat: int = 1
) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall and processor milliseconds of each call, taken in turn: A B C A B C ...

    Args:
        calls: name -> function; its result is waited for and then dropped.
        rounds: how often each is timed, after one untimed call.
        repeat: calls per timing, for what takes microseconds.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                result = call()
            jax.block_until_ready(result)
            wall[name].append((time.perf_counter() - begin) / repeat * 1e3)
            processor[name].append((time.process_time() - begin_cpu) / repeat * 1e3)
            del result
    return (
        {name: median(times) for name, times in wall.items()},
        {name: median(times) for name, times in processor.items()},
    )


def temporaries(compiled: Any) -> int:
    """Bytes of temporary buffers of a compiled jax function: the same on every machine."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


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
        "device": jax.devices()[0].device_kind,
    }


def show(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = []
    for r in rows:
        lines.append(f"{r.row} {r.variant}: ours {r.ours_ms:.3g} ms" + _limit(r))
        for peer, ms in r.peers.items():
            shown = ms if isinstance(ms, str) else f"{ms:.3g} ms, ours / peer {r.ratios[peer]:.3f}"
            lines.append(f"    {peer:24} {shown}")
        for name, size in r.temp_bytes.items():
            lines.append(f"    {name:24} temporaries {size / 2**20:.1f} MiB")
        for name, error in r.error.items():
            lines.append(f"    {name:24} error {error}")
        for limit in r.limits:
            kind = "must" if limit.must else "goal"
            value = "-" if limit.value is None else f"{limit.value:.3f}"
            lines.append(f"    {kind} {limit.what} <= {limit.bound}: {value} {limit.status}")
    return "\n".join(lines)


def _limit(r: Row) -> str:
    return "" if r.limit_ms is None else f" (this machine's limit about {r.limit_ms:.3g} ms)"


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """What is stored."""
    stored = [
        {**asdict(r), "limits": [{**asdict(x), "status": x.status} for x in r.limits]} for r in rows
    ]
    return {"environment": environment(), "rows": stored}
