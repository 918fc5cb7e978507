"""Test report in W&B: logs its tables and pictures to a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.report.test_report import Report, optional
from imgcls.spec import DataSpec

if TYPE_CHECKING:
    from wandb import Run, Table

PICTURES = {"confusion_picture": "confusion_matrix", "reliability": "reliability", "mistakes": "mistakes"}


def log_to_wandb(run: "Run", report: Report, folder: Path, spec: DataSpec) -> None:
    """Logs the confusion matrix, the tables, the worst mistakes, and the pictures that lie in `folder`."""
    import wandb

    with optional("record in W&B"):
        if spec.num_classes <= 100:  # its table has a row for each cell
            code = {name: i for i, name in enumerate(spec.class_names)}
            targets, predictions = (
                report.predictions[n].map(code).tolist() for n in ("target", "prediction")
            )
            names = list(spec.class_names)
            matrix = wandb.plot.confusion_matrix(y_true=targets, preds=predictions, class_names=names)
            run.log({"test/confusion_matrix": matrix})
        files = {f"test/{key}": folder / f"{name}.png" for key, name in PICTURES.items()}
        pairs = report.pairs.astype({"true": str, "predicted": str})
        tables = {
            "test/per_class": wandb.Table(dataframe=report.per_class.astype({"class": str})),
            "test/confused_pairs": wandb.Table(dataframe=pairs),
            "test/worst_mistakes": table_of_mistakes(report),
        }
        run.log({key: wandb.Image(str(path)) for key, path in files.items() if path.is_file()} | tables)


def table_of_mistakes(report: Report) -> "Table":
    """Returns a row for each of the worst mistakes, with its pictures."""
    import wandb

    table = wandb.Table(columns=["picture", "evidence", "target", "prediction", "confidence", "name"])
    for one in report.mistakes:
        evidence = None if one.evidence is None else wandb.Image(one.evidence)
        words = (one.target, one.prediction, one.confidence, one.name)
        table.add_data(wandb.Image(one.picture), evidence, *words)
    return table
