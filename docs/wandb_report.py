"""Makes a W&B report of a sweep.

It has a table of the runs, learning curves, parallel coordinates, what matters, and scatter plots.

python docs/wandb_report.py runs/sweeps/NAME [ENTITY]     prints its address; ENTITY is a user or a team

Needs a key of W&B, the runs there (logged online, or by `wandb sync`), and pip install -e ".[wandb]".
"""

import csv
import sys
from pathlib import Path
from typing import Any

import yaml


def report(folder: Path, entity: str) -> Any:
    """Returns the report, not saved yet.

    Args:
        folder: of a sweep of which a job has ended an epoch; its name is the group of its runs.
        entity: user or team of W&B; empty: the one of the key.

    Raises:
        FileNotFoundError: there is no sweep, or none of its jobs has ended an epoch.
        ValueError: its jobs don't log to W&B.
    """
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2.interface import Config, SummaryMetric

    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    table = next(folder.glob("*/metrics.csv"), folder / "*" / "metrics.csv")
    with table.open(newline="") as file:
        curves = [name for name in next(csv.reader(file)) if name.startswith("val/")]
    config = yaml.safe_load((table.parent / "config.yaml").read_text())
    if "wandb" not in config["logger"]:
        raise ValueError(f"{folder.name} was not logged to W&B; expected a sweep with logger=[csv,wandb]")
    target = f"best/{sweep['optimized_metric'][0]}"
    smaller = sweep["directions"][0] == "min"
    keys = {
        found: "log" in values for key, values in sweep["space"].items() if (found := logged(config, key))
    }

    runs = wr.Runset(
        name=folder.name,
        filters=expr.And(expr.Metric("Group") == folder.name),
        order=[wr.OrderBy(SummaryMetric(target), ascending=smaller)],
        pinned_columns=["run:displayName", f"summary:{target}", "run:state", *map(column, keys)],
    )
    axes = [
        wr.ParallelCoordinatesPlotColumn(Config(key), display_name=key, log=log) for key, log in keys.items()
    ]
    last = wr.ParallelCoordinatesPlotColumn(SummaryMetric(target), display_name=target, inverted=smaller)
    speed = ("images_per_second", SummaryMetric("images_per_second"), False)
    dots = [(key, Config(key), log) for key, log in keys.items()]
    panels = [
        *(wr.LinePlot(title=name, x="epoch", y=[name], max_runs_to_show=100) for name in curves),
        *(
            wr.ScatterPlot(title=key, x=x, y=SummaryMetric(target), log_x=log)
            for key, x, log in [*dots, speed]
        ),
    ]
    wide = [
        wr.ParallelCoordinatesPlot(columns=[*axes, last]),
        wr.ParameterImportancePlot(with_respect_to=target),
    ]
    for place, panel in enumerate(wide):
        panel.layout = wr.Layout(y=place * 10, w=24, h=10)
    for place, panel in enumerate(panels):  # three in a row of 24 columns
        panel.layout = wr.Layout(x=place % 3 * 8, y=len(wide) * 10 + place // 3 * 6, w=8, h=6)
    owner = {"entity": entity} if entity else {}
    return wr.Report(
        project=config["logger"]["wandb"]["project"],
        title=f"Sweep {folder.name}",
        description=sweep["command"],
        blocks=[wr.PanelGrid(runsets=[runs], panels=[*wide, *panels])],
        width="fluid",
        **owner,
    )


def logged(config: dict[str, Any], key: str) -> str | None:
    """Returns the name under which W&B has a swept key as one value: of a group, the choice made for it."""
    key = key.lstrip("+")
    if key in config["names"]:
        return f"names.{key}"
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, dict):
        return f"{key}._target_" if "_target_" in value else None
    return key


def column(key: str) -> str:
    """Returns the name of a config's key in W&B's table of runs."""
    first, *rest = key.split(".")
    return "config:" + ".".join([first, "value", *rest])


def main(path: str, entity: str = "") -> None:
    from imgcls.loggers.wandb import has_key

    if not has_key():
        sys.exit(
            "wandb_report: W&B has no key here, and a report is made on its server; "
            "`wandb login`, or WANDB_API_KEY=…"
        )
    try:
        made = report(Path(path).resolve(), entity).save()
    except ImportError:
        sys.exit('wandb_report: wandb-workspaces is not installed; in the clone: pip install -e ".[wandb]"')
    except FileNotFoundError as error:
        sys.exit(
            f"wandb_report: {error.filename} is not there; "
            "expected a sweep's folder, with a job that ended an epoch"
        )
    except Exception as error:  # of many types: no network, a key that is none, an entity that is another's
        sys.exit(f"wandb_report: {' '.join(str(error).split())}")
    print(made.url)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("python docs/wandb_report.py runs/sweeps/NAME [ENTITY]")
    main(*sys.argv[1:])
