"""The laboratory: one file per paper in, records, a verdict and a report out. It knows no method.

    experiment.py  Experiment, Cell, Report; files    runner.py   runs the cells that are missing
    loop.py        Run: the one training loop         records.py  rows on disk, reading and repair
    verdict.py     the one rule                       verify.py   do stored results still follow?
    select.py      from rows to seeds and tables      data.py     data with its hash
    pilot.py       seeds that choose, seeds that count
    folder.py      what lies in a run folder          shape.py    what its files look like
    plots.py       figures in one style               compare.py  two runs side by side
    sheet.py       what a report shows, written by report.py (Markdown), page.py (HTML) and
                   terminal.py; progress.py, cli.py and usage.py (its help) are what a person
                   sees while it runs

An experiment is a file `experiments/NAME.py` with a module-level `EXPERIMENT`:

    @dataclass(frozen=True)
    class Config:                                   # every field has a default; the command line
        lr: float = 3e-3                            # gets --lr, typed, from this class
        steps: int = 800
        seeds: int = 8

    def cells(config):                              # a cell holds all its seeds (vmap)
        return [Cell(arm, {"arm": arm}, seeds=range(100, 100 + config.seeds)) for arm in ARMS]

    def run(config, cell, run):                     # a generator of rows
        arm = ARMS[cell.settings["arm"]]
        state = yield from run.train(               # rows {"seed", "step", **metrics}
            update,                                 # (state, batch) -> (state, info), compiled
            state,                                  # has .step, [] or [S] with a leading seed axis
            batches,                                # batches(step: int) -> batch, a pure function
            steps=config.steps,                     # up to this step; the cursor is state.step
            evaluate=evaluate,                      # (state) -> {metric: [] or [S]}
            every=100,                              # evaluate at its multiples and at the end
        )
        yield from run.rows({"test_accuracy": test(state)})      # one row per seed, values [S]

    def analyse(config, records):                   # records: list of dicts, one per row
        last = final(records, "test_ece")           # rows that have the metric, last step
        ece = by_seed(last, "test_ece", by="arm")   # {arm: {seed: value}}
        accuracy = by_seed(final(records, "test_accuracy"), "test_accuracy", by="arm")
        return Report(
            parts=[
                superior("calibration error lower", ece["bd"], ece["kl"], margin=0.01,
                         larger_is_better=False),
                not_worse("accuracy not lower", accuracy["bd"], accuracy["kl"], margin=0.005),
            ],
            tables={"Test split": summary(records, ["test_accuracy", "test_ece"], by="arm")},
            figures={"Learning curves": lambda: plots.learning_curves(records, "accuracy")},
            notes=["What the reader should know."],
        )

    EXPERIMENT = Experiment(
        name="toy", paper="2212.12965", claim="One falsifiable sentence.",
        config=Config, presets={"smoke": {"steps": 20, "seeds": 2}, "demo": {...}, "cpu": {}},
        cells=cells, run=run, analyse=analyse,
        data=lambda config: [digits().provenance],
    )

A frozen teacher goes into the step: `lambda state, batch: update(state, batch, teacher)`. Several
calls of `run.train` in one cell are checkpointed and resumed apart. The stored verdict of a paper
is made by `divjax run NAME --preset cpu` and `divjax report NAME --preset cpu --store`, which keeps
records, verdict, config and figures in experiments/results/NAME for git. A preset on other data
than the claim's is named in `beside`: it is stored in results/NAME/PRESET, is no verdict, and its
figures are shown in the cpu report.

Signatures (all from `divjax.lab`; `plots` is `divjax.lab.plots`):

    Experiment(name, paper, claim, config, presets, cells, run, analyse, data=no_data,
               beside={})                       # preset -> what it measures beside the claim
    Cell(name, settings={}, seeds=())               # rows carry "cell" and the settings
    Report(parts, tables={}, figures={}, notes=())  # tables: DataFrames; figures: () -> Figure
    Run.train(step, state, batches, *, steps, evaluate, every, log=None, allow_nonfinite=False,
              save_seconds=30.0, save_steps=None) -> generator of rows that returns the state
    Run.rows(metrics, **more) -> list of rows       # metrics: {name: [S] or [S, ...]}
    superior(name, ours, theirs, *, margin, larger_is_better=True) -> Part
    not_worse(name, ours, theirs, *, margin, larger_is_better=True) -> Part
    stated(name, estimate, low, high, *, threshold, differences=None) -> Part    # a fit, a bound
    control(name, ours, theirs, *, larger_is_better=True) -> Part   # shown, no part of the verdict
    piloted(config, settings, name, *, apart=False) -> cells    # the pilot's seeds, then reported
    parted(config, records) -> (pilot, reported)    # is_pilot(config, seed) for one seed
    conclude(parts, *, preset, beside=False) -> Verdict     # the runner calls it
    final(records, metric) -> records               # the last row of each cell and seed
    by_seed(records, metric, *, by) -> {group: {seed: value}}
    keep(records, choice, *, by) -> records         # the rows of the chosen settings
    choose(records, metric, *, by, over, larger_is_better=True) -> {group: {setting: value}}
    summary(records, metrics, *, by) -> DataFrame   # mean and 95 % half-width over seeds
    frame(records) -> DataFrame
    plots.learning_curves(records, metric, *, by="arm", x="step") -> Figure
    plots.by_arm(records, metric, *, by="arm") -> Figure         # a dot per seed, mean, interval
    plots.reliability(confidence, accuracy, count) -> Figure     # {arm: [bins]} three times
    plots.intervals(parts) -> Figure                             # every report has this one
    digits() -> Data(inputs, labels, provenance)                 # real 8x8 images
    fashion_mnist(path=None), cifar10(path=None, *, count) -> Data    # files in $DIVJAX_DATA
    noisy_splits(data, seed, *, train, validation, noise, test=None) -> {split: (inputs, labels)}
    stacked_splits(data, seeds, *, ...) -> the same with a leading axis [S]
    minibatches({name: [S, N, ...]}, seeds, *, size) -> (step -> {name: [S, B, ...]})
    load(name, read, *, source, path=None) -> (arrays, Provenance)      # path or $DIVJAX_DATA
"""

from divjax.lab.data import Data, digits, load, minibatches, noisy_splits, stacked_splits
from divjax.lab.experiment import Cell, Experiment, Provenance, Report
from divjax.lab.images import cifar10, fashion_mnist
from divjax.lab.loop import NonFinite, Run
from divjax.lab.pilot import REPORTED, is_pilot, parted, piloted
from divjax.lab.records import LabError, Record, Records
from divjax.lab.select import by_seed, choose, final, frame, keep, summary
from divjax.lab.verdict import (
    Part,
    Verdict,
    conclude,
    control,
    not_worse,
    stated,
    superior,
    t_interval,
)

__all__ = [
    "REPORTED",
    "Cell",
    "Data",
    "Experiment",
    "LabError",
    "NonFinite",
    "Part",
    "Provenance",
    "Record",
    "Records",
    "Report",
    "Run",
    "Verdict",
    "by_seed",
    "choose",
    "cifar10",
    "conclude",
    "control",
    "digits",
    "fashion_mnist",
    "final",
    "frame",
    "is_pilot",
    "keep",
    "load",
    "minibatches",
    "noisy_splits",
    "not_worse",
    "parted",
    "piloted",
    "stacked_splits",
    "stated",
    "summary",
    "superior",
    "t_interval",
]
