"""`[tool.imgcls]`: what is wrong in it; a checkpoint of a project's own code in and out of the project."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import imgcls as imgcls_command
from support.pictures import write_picture
from support.projects import forget, project

import imgcls
from imgcls.config.project import Project, own_project
from imgcls.engine.signals import STOPPED
from imgcls.errors import UserError
from imgcls.tools.new import write

SMALL = ("experiment=leafnet", "data.count=120", "data.batch_size=24", "trainer.max_epochs=2", "trainer=cpu")

WRONG = {
    "packge = 'mine'": "packge: there is no such key",
    "package = 3": "package=3: expected the name",
    "package = 'imgcls'": "is the engine",
    "package = 'os'": "package='os' is Python's own",
    "package = 'nowhere'": "there is no src/nowhere",
    "conf = 'nowhere'": "expected a folder",
    "conf = 'a": "can't be read",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_table_is_one_line(line: str, said: Callable[..., str]) -> None:
    Path("pyproject.toml").write_text(f"[tool.imgcls]\n{line}\n")
    assert WRONG[line] in said("train", "debug=fast")


def test_the_nearest_file_above_counts() -> None:
    project = write("alone", Path.cwd())
    os.chdir(project / "src")
    found = own_project()
    assert found is not None
    assert (found.root, found.package, found.conf) == (project, "alone", project / "conf")
    (project / "src/pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert own_project() is None


def test_a_name_of_ours_is_the_project_s(said: Callable[..., str]) -> None:
    """A file of the project comes before ours of the same name; choices name both."""
    with project("leafy"):
        Path("conf/backbone/resnet20.yaml").write_text("_target_: leafy.backbone.nothing\n")
        assert "leafy.backbone.nothing" in said(
            "train", "experiment=leafy", "backbone=resnet20", "debug=fast"
        )
        assert "leafy" in said("train", "backbone=leafi")


OUTSIDE = ("eval", "export out=net.onnx", "predict source=.")  # of a checkpoint


def test_all_verbs_in_a_project(here: Callable[..., None], train: Callable[..., Any]) -> None:
    """Trains, also several and on from a stop, and uses the checkpoint for all that there is."""
    with project("leafnet"):
        assert train(*SMALL, "hydra.run.dir=runs/cut", stop=3) == STOPPED
        assert train("resume=runs/cut") is None
        here("train", "-m", *SMALL, "test=false", "backbone.width=4,8", "hydra.sweep.dir=runs/both")
        write_picture(Path("pictures/a.png"))
        here("eval", "checkpoint=runs/cut", "hydra.run.dir=again")
        assert Path("again/metrics.json").read_text() == Path("runs/cut/test/metrics.json").read_text()
        here("predict", "checkpoint=runs/cut", "source=pictures", "out=labels.csv")
        assert {"disc", "square", "cross"} <= {*Path("labels.csv").read_text().replace("\n", ",").split(",")}
        here("export", "checkpoint=runs/cut", "out=net.pt2", "format=torch_export")
        here("compare", "runs=runs", "hydra.run.dir=compared")
        table = Path("compared/runs.csv").read_text()
        assert len(table.splitlines()) == 4 and "cut" in table


def test_from_python_in_a_project() -> None:
    """Its package and config files are found from the working directory, as the command finds them."""
    with project("leafnet"):
        data = imgcls.load_data(["data=leafnet", "data.count=60"])
        assert data.spec.class_names == ("disc", "square", "cross")
        with pytest.raises(UserError, match="data=leafnot: there is no such choice.*leafnet"):
            imgcls.load_data(["data=leafnot"])
        run = imgcls.train([*SMALL, "hydra.run.dir=run"])
        forget("leafnet")
        sys.path.remove(str(Path("src").absolute()))
        model = imgcls.load(run.path)  # as in a notebook that was started anew
        assert type(model.task).__name__ == "LeafnetClassifier" and "test/top1" in run.metrics
        assert len(model.predict(data.sets["test"].picture(0)).labels) == 3


def test_a_checkpoint_elsewhere_is_one_line(here: Callable[..., None], said: Callable[..., str]) -> None:
    """The package is not trusted, and nothing of it runs although it can be imported; or it is missing."""
    with project("leafnet") as folder:
        here("train", *SMALL, "test=false", "hydra.run.dir=run")
        Path("src/leafnet/__init__.py").write_text("raise SystemExit('it ran')\n")
    write_picture(Path("a.png"))
    sys.path.insert(0, str(folder / "src"))
    for command in OUTSIDE:
        line = said(*command.split(), f"checkpoint={folder}/run")
        assert "leafnet is not trusted and was not imported; add trust=[leafnet]" in line
    with pytest.raises(UserError, match="leafnet is not trusted"):
        imgcls.ImageClassifier.load_from_checkpoint(folder / "run")
    sys.path.remove(str(folder / "src"))
    for command in OUTSIDE:
        line = said(*command.split(), f"checkpoint={folder}/run", "trust=[leafnet]")
        assert "the module leafnet is not there; install it, or put its folder on PYTHONPATH" in line


@pytest.mark.slow  # processes of their own
def test_a_checkpoint_of_two_processes_in_its_project_and_elsewhere() -> None:
    with project("leafnet") as folder:
        done = imgcls_command(
            "train", "experiment=leafnet", "debug=fast", "trainer=ddp_cpu", "hydra.run.dir=two"
        )
        assert done.returncode == 0, done.stderr
        done = imgcls_command("eval", "checkpoint=two")
        assert done.returncode == 0, done.stderr
        Path("src/leafnet/__init__.py").write_text("open('it_ran', 'w').close()\n")
    inherited = os.environ.get("PYTHONPATH", "")
    for command in OUTSIDE:
        words = [*command.split(), f"checkpoint={folder}/two"]
        done = imgcls_command(*words, PYTHONPATH=f"{inherited}:{folder}/src")
        assert done.returncode == 1 and "leafnet is not trusted and was not imported" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not Path("it_ran").exists()


def test_another_package_of_the_same_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects of one name in one process, as in a notebook."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    projects = [Project(write("fernnet", tmp_path / place), "fernnet") for place in "ab"]
    projects[0].enter()
    try:
        importlib.import_module("fernnet")
        projects[0].enter()
        with pytest.raises(
            UserError, match="the package fernnet of .* is loaded already; start a new process"
        ):
            projects[1].enter()
    finally:
        sys.modules.pop("fernnet", None)
