"""What `divjax COMMAND --help` says where no experiment is named."""

from collections.abc import Mapping

RUN = "A RUN is a NAME (its stored results), NAME:PRESET (in ./runs) or a folder."
OWN = """Every field of the experiment's config is an option too, with the value of the
preset as default: divjax {} NAME --help shows them."""

HELP: Mapping[str, str] = {
    "list": """divjax list: what experiments there are, with the verdicts that are stored

  divjax list
  divjax list --json    one line of JSON for each

Experiments are those that come with divjax and those in ./experiments; where
DIVJAX_EXPERIMENTS names a folder, those in it alone.
""",
    "show": f"""divjax show: claim, presets, cells and data of one experiment

  divjax show NAME
  divjax show NAME --preset demo    the cells of another preset than cpu

{OWN.format("show")}
""",
    "run": f"""divjax run: run an experiment and write its report

  divjax run NAME                 the preset demo: minutes, too small to decide
  divjax run NAME --preset cpu    the preset that decides; also NAME:cpu
  divjax run NAME --preset cpu --out FOLDER

  --preset    smoke, demo, cpu or another that it has; demo when not given
  --out       the run folder; runs/NAME/PRESET when not given
  --fresh     refuse a run folder that is not empty

A run that was broken off goes on where it was by the same command.
{OWN.format("run")}
""",
    "report": f"""divjax report: write the report of a run folder again

  divjax report NAME --preset demo           also NAME:demo; cpu when not given
  divjax report NAME --preset cpu --store    and keep the results, for git

  --preset    the preset that was run
  --out       the run folder; runs/NAME/PRESET when not given
  --store     keep them in experiments/results/NAME, other presets below it

Options that the run was given have to be given again.
{OWN.format("report")}
""",
    "verify": f"""divjax verify: do verdicts follow from their records?

  divjax verify NAME                  the stored results of one
  divjax verify NAME --preset demo    of the run in ./runs; also NAME:demo
  divjax verify --all                 the stored results of all

  --out     another folder
  --json    print one line of JSON for each

The exit code is 1 for a mismatch, and for a NAME without results; with --all an
experiment without stored results is named and is no error.
{OWN.format("verify")}
""",
    "compare": f"""divjax compare: two runs side by side: what differs, verdicts, metrics

  divjax compare NAME NAME:demo
  divjax compare runs/NAME/demo FOLDER --json    one line of JSON

{RUN}
Differences are paired over the seeds that both runs have.
""",
}
