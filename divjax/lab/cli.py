"""`divjax list | show | run | report | verify | compare`; `divjax --help` says the rest."""

import dataclasses
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import divjax
from divjax.lab.loop import NonFinite
from divjax.lab.records import LabError, nearest
from divjax.lab.usage import HELP

EXTRA = ("tyro", "rich", "matplotlib", "pandas", "sklearn")  # what the extra `lab` brings

USAGE = """divjax: experiments that reproduce papers, one file each

  divjax list                       what there is, with the stored verdicts
  divjax show NAME                  claim, presets, cells and data of one
  divjax run NAME --preset cpu      run it; the same command again goes on where it was
  divjax report NAME --preset cpu   write the report of a run folder again
  divjax verify NAME | --all        do the stored verdicts follow from the stored records?
  divjax compare RUN RUN            two runs side by side: what differs, verdicts, metrics

divjax COMMAND --help says more. NAME:PRESET is short for NAME --preset PRESET.
A RUN is a NAME (its stored results), NAME:PRESET (in ./runs) or a folder.
An experiment's own options are the fields of its config: divjax run NAME --help.
"""


@dataclasses.dataclass
class ListOptions:
    """What experiments there are, with the verdicts that are stored."""

    json: bool = False
    """one line of JSON for each"""


class Chosen(NamedTuple):
    """A parsed command line: the experiment, its resolved config and the other options."""

    found: Any
    preset: str
    config: Any
    options: Mapping[str, Any]


Extras = Sequence[tuple[str, Any, Any, str]]  # name, type, default, help

OUT = ("out", Path | None, None, "the run folder; runs/NAME/PRESET when not given")
FRESH = ("fresh", bool, False, "refuse a run folder that is not empty")
STORE = ("store", bool, False, "keep the results in experiments/results, for git")
JSON = ("json", bool, False, "print one line of JSON")


def _fields(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")


def _option_name(argument: str) -> str:
    return argument[2:].split("=")[0].replace("-", "_")


def _refuse_unknown(arguments: Sequence[str], known: Sequence[str], name: str) -> None:
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        key = _option_name(argument)
        if key not in known and key.removeprefix("no_") not in known:
            shown = key.replace("_", "-")
            raise LabError(f"{name} has no option --{shown}; {nearest(key, known)}")


def _name_at(arguments: Sequence[str]) -> int | None:
    """Where the experiment is named: in front, or a known name anywhere, or at the end."""
    from divjax.lab.experiment import files

    if arguments and not arguments[0].startswith("-"):
        return 0
    known = files()
    for i, argument in enumerate(arguments):
        if argument.partition(":")[0] in known and arguments[i - 1] not in ("--out", "--preset"):
            return i
    if any(argument.startswith("-") for argument in arguments[-2:]):
        return None
    return len(arguments) - 1 if arguments else None


def _refuse_counts(config: Any, preset: Any) -> None:
    """Seeds, steps and the like: a whole number that a preset has above 0 stays there."""
    for field in dataclasses.fields(preset):
        value, usual = getattr(config, field.name), getattr(preset, field.name)
        counts = isinstance(usual, int) and not isinstance(usual, bool) and usual > 0
        if counts and value < 1:
            shown = field.name.replace("_", "-")
            raise LabError(f"--{shown} must be at least 1, got {value}; the preset has {usual}")


def _preset(named: Sequence[str], arguments: Sequence[str], default: str) -> str:
    """The preset has to be known before the options are: it gives their defaults."""
    given = [*named, *(b for a, b in pairwise(arguments) if a == "--preset")]
    given += [a.removeprefix("--preset=") for a in arguments if a.startswith("--preset=")]
    if len(given) > 1:
        raise LabError(f"--preset is given twice: {', '.join(given)}; give it once")
    preset = given[0] if given else default
    if "+" in preset:  # as folders of runs are called
        base = preset.partition("+")[0]
        raise LabError(f"{preset}: give the preset {base}, and what departs from it as options")
    return preset


def _named(command: str, word: str) -> tuple[str, list[str]]:
    """NAME, or NAME:PRESET as `compare` takes it: the name, and the preset if there is one."""
    from divjax.lab.experiment import files

    name, colon, preset = word.partition(":")
    if name not in files() and Path(word).is_dir():
        raise LabError(
            f"{word} is a folder; {command} takes the name of an experiment: "
            f"divjax {command} NAME:PRESET"
        )
    return name, [preset] if colon else []


def _parse(command: str, arguments: Sequence[str], extras: Extras, preset: str) -> Chosen:
    """NAME or NAME:PRESET, and options typed by the experiment's config dataclass."""
    import tyro

    from divjax.lab.experiment import files, find

    at = _name_at(arguments)
    if at is None:
        raise LabError(
            f"divjax {command} needs the name of an experiment: "
            f"divjax {command} NAME; known: {', '.join(files()) or 'none'}"
        )
    name, named = _named(command, arguments[at])
    rest = [*arguments[:at], *arguments[at + 1 :]]
    found = find(name)
    preset = _preset(named, rest, preset)
    config = found.experiment.preset(preset)
    own = ["help", "preset", *(extra[0] for extra in extras)]
    _refuse_unknown(rest, [*own, *_fields(config)], name)
    chosen: Any = Literal[tuple(found.experiment.presets)]
    shape = dataclasses.make_dataclass(
        "Options",
        [
            ("preset", Annotated[chosen, tyro.conf.arg(help="which size")], preset),
            *(
                (key, Annotated[kind, tyro.conf.arg(help=text)], default)
                for key, kind, default, text in extras
            ),
            (
                "config",
                Annotated[type(config), tyro.conf.arg(name="")],
                dataclasses.field(default_factory=lambda: config),
            ),
        ],
    )
    width = shutil.get_terminal_size().columns
    # tyro joins lines, save those that begin with a blank
    claim = textwrap.fill(found.experiment.claim, width, subsequent_indent="  ")
    parsed: Any = tyro.cli(shape, args=rest, prog=f"divjax {command} {name}", description=claim)
    _refuse_counts(parsed.config, config)
    options = {extra[0]: vars(parsed)[extra[0]] for extra in extras}
    return Chosen(found, preset, parsed.config, options)


def list_(arguments: Sequence[str]) -> int:
    """Prints the experiments."""
    import tyro

    from divjax.lab import terminal
    from divjax.lab.experiment import Found, files, load_file
    from divjax.lab.verify import as_json, row

    options = tyro.cli(ListOptions, args=list(arguments), prog="divjax list")
    rows = [row(Found(load_file(file), file), None) for file in files().values()]
    if options.json:
        for line in rows:
            print(as_json(line))
        return 0
    terminal.show_list(rows)
    return 0


def show(arguments: Sequence[str]) -> int:
    """Prints one experiment."""
    from divjax.lab import terminal

    chosen = _parse("show", arguments, (), "cpu")
    terminal.show_experiment(chosen.found, chosen.preset, chosen.config)
    return 0


def run(arguments: Sequence[str]) -> int:
    """Runs an experiment and writes its report."""
    from divjax.lab import report, runner, terminal

    chosen = _parse("run", arguments, (OUT, FRESH), "demo")
    found, preset, config, options = chosen
    console = terminal.console()
    terminal.show_start(console, found, preset, config)
    place = runner.run(
        found, preset, config, out=options["out"], fresh=options["fresh"], console=console
    )
    outcome = runner.outcome(found, preset, config, place)
    sheet = report.write(found, outcome.report, outcome.verdict, place)
    terminal.show_sheet(console, sheet, place)
    return 0


def report_(arguments: Sequence[str]) -> int:
    """Writes the report of a run folder again, and stores its results."""
    from divjax.lab import folder, report, runner, terminal
    from divjax.lab.verdict import PROVISIONAL

    chosen = _parse("report", arguments, (OUT, STORE), "cpu")
    found, preset, config, options = chosen
    small = preset in PROVISIONAL
    if options["store"] and (small or folder.changes(found.experiment, preset, config)):
        raise LabError("--store keeps a preset that is neither smoke nor demo, without overrides")
    place = options["out"] or folder.default_folder(found.experiment, preset, config)
    data = folder.data_identity(found.experiment, config)
    folder.require_same(place, folder.identity(found.experiment, preset, config, data))
    outcome = runner.outcome(found, preset, config, place)
    sheet = report.write(found, outcome.report, outcome.verdict, place)
    terminal.show_sheet(terminal.console(), sheet, place)
    if options["store"]:
        print(f"stored in {folder.store(found, preset, place)}")
    return 0


def verify_(arguments: Sequence[str]) -> int:
    """Recomputes stored verdicts (of a preset that is not stored: of the run); 1 for a mismatch."""
    from divjax.lab import folder, terminal
    from divjax.lab.experiment import Found, files, folders, load_file
    from divjax.lab.verify import MISMATCH, MISSING, as_json, row, verify

    if "--all" in arguments:
        _refuse_unknown(arguments, ["all", "json"], "verify --all")
        names = [a for a in arguments if not a.startswith("-")]
        if names:
            raise LabError(f"verify takes --all or a name, got both: {', '.join(names)}")
        every = [Found(load_file(file), file) for file in files().values()]
        if not every:  # a wrong folder must not look like success
            raise LabError(f"no experiments in {', '.join(map(str, folders())) or 'any folder'}")
        checks = [
            (each, verify(each, preset, each.experiment.preset(preset), each.stored(preset)))
            for each in every
            for preset in ("cpu", *folder.stored_presets(each))
        ]
        as_lines, bad = "--json" in arguments, [MISMATCH]
    else:
        chosen = _parse("verify", arguments, (OUT, JSON), "cpu")
        found, preset, config, options = chosen
        kept = found.stored(preset)
        if preset != "cpu" and not folder.is_stored(kept):
            kept = folder.default_folder(found.experiment, preset, config)
        checks = [(found, verify(found, preset, config, options["out"] or kept))]
        as_lines, bad = options["json"], [MISMATCH, MISSING]
    rows = [row(found, check) for found, check in checks]
    if as_lines:
        for line in rows:
            print(as_json(line))
    else:
        terminal.show_checks(rows)
    return int(any(check.result in bad for _, check in checks))


def compare_(arguments: Sequence[str]) -> int:
    """Shows two runs side by side; 0 whatever the comparison says."""
    from divjax.lab import compare, terminal
    from divjax.lab.verify import as_json

    _refuse_unknown(arguments, ["json"], "compare")
    runs = [argument for argument in arguments if not argument.startswith("-")]
    if len(runs) != 2:
        raise LabError(
            f"compare takes two runs, got {len(runs)}: divjax compare RUN RUN; a RUN is a NAME "
            "(its stored results), NAME:PRESET (in ./runs) or a folder"
        )
    found = compare.compare(*(compare.load(compare.locate(run)) for run in runs))
    if "--json" in arguments:
        print(as_json(compare.as_dict(found)))
    else:
        terminal.show_comparison(found)
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "list": list_,
    "show": show,
    "run": run,
    "report": report_,
    "verify": verify_,
    "compare": compare_,
}


NAMED = ("show", "run", "report", "verify")  # commands whose options are an experiment's


def _help(command: str, rest: Sequence[str]) -> str:
    """The version, the general usage, or that of a command; "" where none is asked for."""
    if command == "--version":
        return f"divjax {divjax.__version__}\n"
    if command in ("-h", "--help", "help"):
        return HELP.get(rest[0], USAGE) if rest else USAGE
    asked = {"-h", "--help"} & set(rest)
    named = command in NAMED and _name_at(rest) is not None  # then it is of that experiment
    return HELP.get(command, "") if asked and not named else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command; returns its exit code.

    0 done, 1 a mismatch or a run that broke off, 2 a wrong command line, 130 ctrl-C.
    """
    command, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows no \u00b1 shows ? for it
        sys.stdout.reconfigure(errors="replace")
    if os.environ.get("NO_COLOR"):  # rich knows it; tyro has a switch of its own
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    try:
        if shown := _help(command, rest):
            print(shown, end="", flush=True)
            return 0
        if command not in COMMANDS:
            raise LabError(f"no command '{command}'; {nearest(command, COMMANDS)}")
        return COMMANDS[command](rest)
    except LabError as error:
        print(f"divjax: {error}", file=sys.stderr)
        return 1 if isinstance(error, NonFinite) else 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        print(f"divjax: {error.name} is missing; pip install 'divjax[lab]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(
            "\ndivjax: stopped; every row so far is on the disk, and the same command goes on "
            "from there",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
