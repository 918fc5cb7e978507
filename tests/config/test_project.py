"""`[tool.imgcls]`: what is wrong in it; a checkpoint of a project's own code in and out of the project."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import imgcls
from support.pictures import write_picture

from imgcls.config.project import own_project
from imgcls.errors import UserError
from imgcls.tools.new import write

WRONG = {
    "packge = 'mine'": "packge: there is no such key",
    "package = 3": "package=3: expected the name",
    "package = 'imgcls'": "is the engine",
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
    os.chdir(write("leafy", Path.cwd()))
    Path("conf/backbone/resnet20.yaml").write_text("_target_: leafy.backbone.nothing\n")
    assert "leafy.backbone.nothing" in said("train", "experiment=leafy", "backbone=resnet20", "debug=fast")
    assert "leafy" in said("train", "backbone=leafi")
    sys.modules.pop("leafy", None)


@pytest.mark.slow  # processes of their own
def test_a_checkpoint_in_its_project_and_elsewhere(tmp_path: Path) -> None:
    """Trained by two processes, evaluated, used for prediction and exported; elsewhere one line says that the
    package is not trusted, and nothing of it runs, although it could be imported."""
    project = write("leafnet", tmp_path)
    os.chdir(project)
    (project / "src/leafnet/__init__.py").write_text(f"open('{tmp_path}/it_ran', 'w').close()\n")
    fast = ("experiment=leafnet", "debug=fast", "test=false")
    done = imgcls("train", *fast, "trainer=ddp_cpu", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert imgcls("eval", "checkpoint=two").returncode == 0
    done = imgcls("export", "checkpoint=two", "out=net.onnx")
    assert done.returncode == 0, done.stderr
    write_picture(Path("pictures/a.png"))
    done = imgcls("predict", "checkpoint=two", "source=pictures")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(project / "src/leafnet/__pycache__", ignore_errors=True)
    (tmp_path / "it_ran").unlink()
    os.chdir(tmp_path)
    for command in ("eval checkpoint=", "export out=net.onnx checkpoint=", "predict source=. checkpoint="):
        done = imgcls(
            *f"{command}{project}/two".split(), PYTHONPATH=f"{os.environ['PYTHONPATH']}:{project}/src"
        )
        assert done.returncode == 1 and "leafnet is not trusted and was not imported" in done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "it_ran").exists()
    with pytest.raises(UserError, match="not trusted"):
        from imgcls.tasks.task import Task

        Task.load_from_checkpoint(project / "two")
