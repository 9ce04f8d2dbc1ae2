"""What an experiment file defines, and how it is found by its file name."""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from divjax.lab.loop import Run
from divjax.lab.records import LabError, Record, Records, nearest
from divjax.lab.verdict import Part

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Config = Any  # an instance of the experiment's own dataclass

RESERVED = ("preset", "out", "fresh")  # options of `divjax run`
OWN_COLUMNS = ("cell", "end", "seed")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where data come from.

    Attributes:
        name: what they are called.
        source: package and version, or the public address they were taken from.
        sha256: of the bytes that the experiment reads.
        real: measured in the world, not generated.
        licence: under which they may be used.
    """

    name: str
    source: str
    sha256: str
    real: bool
    licence: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm at one setting with all its seeds: the unit that is run, skipped and resumed.

    Attributes:
        name: unique in the experiment; letters, digits and ._+=- only.
        settings: columns that every row of the cell carries.
        seeds: one row a seed; empty when nothing is random.
    """

    name: str
    settings: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+=-]+", self.name) or self.name.startswith("."):
            raise LabError(f"Cell: name must match [A-Za-z0-9_.+=-]+, got {self.name!r}; rename it")
        if clash := [key for key in OWN_COLUMNS if key in self.settings]:
            raise LabError(f"Cell {self.name}: settings must not be called {clash}; rename them")
        object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds))


@dataclasses.dataclass(frozen=True)
class Report:
    """What `analyse` makes of the records.

    Attributes:
        parts: the parts of the claim; the lab concludes from them by its one rule.
        tables: title -> table.
        figures: title -> a function that draws it, called only when a report is written.
        notes: what the reader must know, a sentence or a paragraph each.
    """

    parts: Sequence[Part]
    tables: Mapping[str, "pd.DataFrame"] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Callable[[], "Figure"]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


def no_data(config: Config) -> Sequence[Provenance]:
    """The provenance of an experiment that reads no data."""
    return ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A paper as a claim, a grid of cells and three functions.

    Attributes:
        name: the stem of its file.
        paper: arXiv id.
        claim: one falsifiable sentence.
        config: a dataclass whose fields all have defaults.
        presets: name -> fields that differ from the defaults; smoke, demo and cpu at least.
        cells: config -> cells, in the order they are run.
        run: (config, cell, run) -> rows, as a generator; equal calls yield equal rows.
        analyse: (config, records) -> Report; reads nothing but its arguments.
        data: config -> provenance of all data that are read.
        beside: preset -> what it measures, for presets on other data than the claim's; their
            figures stand beside the verdict.

    Raises:
        LabError: a name, preset or field that cannot work.
    """

    name: str
    paper: str
    claim: str
    config: type[Any]
    presets: Mapping[str, Mapping[str, Any]]
    cells: Callable[[Config], Sequence[Cell]]
    run: Callable[[Config, Cell, Run], Iterator[Record]]
    analyse: Callable[[Config, Records], Report]
    data: Callable[[Config], Iterable[Provenance]] = no_data
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"Experiment {self.name!r}"
        if not dataclasses.is_dataclass(self.config):
            raise LabError(f"{where}: config must be a dataclass, got {self.config!r}; decorate it")
        fields = [field.name for field in dataclasses.fields(self.config)]
        if clash := sorted(set(fields) & set(RESERVED)):
            raise LabError(f"{where}: config fields must not be called {clash}; rename them")
        if missing := {"smoke", "demo", "cpu"} - set(self.presets):
            raise LabError(f"{where}: presets must include smoke, demo and cpu; add {missing}")
        for preset, changes in self.presets.items():
            for key in set(changes) - set(fields):
                raise LabError(f"{where}: preset {preset} sets '{key}'; {nearest(key, fields)}")
        if unknown := set(self.beside) - (set(self.presets) - {"smoke", "demo", "cpu"}):
            raise LabError(f"{where}: beside names {sorted(unknown)}; name presets of other data")

    def preset(self, name: str) -> Config:
        """The config of a preset."""
        if name not in self.presets:
            raise LabError(f"{self.name} has no preset '{name}'; {nearest(name, self.presets)}")
        return self.config(**self.presets[name])

    def sentence(self, preset: str) -> str:
        """What a preset is about: the claim, or what it measures beside it."""
        return self.beside.get(preset, self.claim)


class Found(NamedTuple):
    """An experiment with the file that defines it."""

    experiment: Experiment
    file: Path

    @property
    def results(self) -> Path:
        """The folder of its stored cpu results."""
        return self.file.parent / "results" / self.experiment.name

    def stored(self, preset: str) -> Path:
        """The folder of a preset's stored results: inside that of cpu for all others."""
        return self.results if preset == "cpu" else self.results / preset


def folders() -> list[Path]:
    """Where experiment files are looked for, in this order.

    $DIVJAX_EXPERIMENTS alone when it is set; else ./experiments, the checkout's experiments and
    those that a wheel ships as divjax/_experiments.
    """
    if named := os.environ.get("DIVJAX_EXPERIMENTS"):
        return [Path(part) for part in named.split(os.pathsep)]
    package = Path(__file__).resolve().parent.parent
    places = Path.cwd() / "experiments", package.parent / "experiments", package / "_experiments"
    return list(dict.fromkeys(place for place in places if place.is_dir()))


def files() -> dict[str, Path]:
    """Experiment name -> file; a file is one when it assigns EXPERIMENT at its left margin."""
    found: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.glob("[!_]*.py")):
            if re.search(r"^EXPERIMENT\b", file.read_text("utf-8"), re.MULTILINE):
                found.setdefault(file.stem, file)
    return found


def find(name: str) -> Found:
    """The experiment of this name.

    Raises:
        LabError: there is no such file, or it does not define an Experiment of this name.
    """
    known = files()
    if name not in known:
        places = ", ".join(str(folder) for folder in folders()) or "no folder"
        raise LabError(f"no experiment '{name}' in {places}; {nearest(name, known)}")
    return Found(load_file(known[name]), known[name])


def load_file(file: Path) -> Experiment:
    """Runs an experiment file and returns its EXPERIMENT."""
    module_name = f"divjax_experiment_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise LabError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their annotations up here
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:  # bytecode is kept by the second: a file edited twice within one would run as it was
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    experiment = vars(module)["EXPERIMENT"]
    if not isinstance(experiment, Experiment) or experiment.name != file.stem:
        raise LabError(f"{file}: EXPERIMENT must be an Experiment named '{file.stem}'")
    return experiment
