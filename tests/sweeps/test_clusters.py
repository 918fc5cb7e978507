"""The same sweep wherever jobs run, and single runs under SLURM and torchrun: clusters on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cluster import Ray, Slurm, Unavailable
from support.command import ROOT, imgcls
from support.runs import assert_same_run

pytestmark = pytest.mark.slow
RUN = ("logger=csv", "trainer=cpu", "trainer.max_epochs=20", "data.num_workers=0")
SWEEP = ("train", "-m", *RUN, "test=false", "seed=0,1", "optimizer.lr=0.001,0.01")
ADDRESS = "hydra.launcher.ray.init.address"
DDP = ("logger=csv", "trainer=ddp_cpu", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    try:
        with Slurm(tmp_path_factory.mktemp("slurm")) as running:
            programs = f"{Path(sys.executable).parent}:{running.environment['PATH']}"
            running.environment |= {"PATH": programs, "OMP_NUM_THREADS": "1"}
            yield running
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's directory where its jobs run one after the other in one process."""
    folder = tmp_path_factory.mktemp("local") / "sweep"
    done = imgcls(*SWEEP, f"hydra.sweep.dir={folder}", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@contextmanager
def begun(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    command, environment = (
        [sys.executable, "-m", "imgcls", *arguments],
        {**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    with Path("out.txt").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 200
    while not what():
        assert time.monotonic() < end and (process is None or process.poll() is None), Path(
            "out.txt"
        ).read_text()
        time.sleep(0.1)


def epochs(pattern: str) -> int:
    """The fewest epochs that one of the runs has in its metrics.csv; 0 without any."""
    return min(
        (len(path.read_text().splitlines()) - 1 for path in Path().glob(f"{pattern}/metrics.csv")), default=0
    )


def jobs(sweep: Path) -> list[Path]:
    """The jobs' directories, by number; beside them lie submitit's files."""
    return sorted(sweep.glob("[0-9]_*"))


def resumed(folder: Path) -> int:
    return len(json.loads((folder / "environment.json").read_text()).get("resumed", []))


def assert_same_sweep(local: Path, other: Path) -> None:
    assert [folder.name for folder in jobs(local)] == [folder.name for folder in jobs(other)]
    for one, same in zip(jobs(local), jobs(other), strict=True):
        assert_same_run(one, same)


def preempt(slurm: Slurm, job: str) -> None:
    """Lets a more important job take the node of this one, which then goes on without its two minutes."""
    node = slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    slurm.run("sbatch", "-p", "high", "-w", node, "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: slurm.state(job) == "PENDING")
    slurm.run("scontrol", "update", f"jobid={job}", "StartTime=now")


def test_several_processes(local: Path) -> None:
    done = imgcls(*SWEEP, "launcher=joblib", "hydra.sweep.dir=sweep", timeout=500)
    assert done.returncode == 0 and "4 of 4 done" in done.stdout, done.stdout + done.stderr
    assert_same_sweep(local, Path("sweep"))


def test_slurm_sweep_with_a_job_preempted(local: Path, slurm: Slurm) -> None:
    command = (*SWEEP, "launcher=slurm", "hydra.launcher.partition=low", "hydra.sweep.dir=sweep")
    with begun(*command, **slurm.environment) as process:
        wait_for(lambda: epochs("sweep/0_*") > 2, process)
        array = slurm.run("squeue", "-h", "-t", "RUNNING", "-o", "%F").split()[0]
        preempt(slurm, f"{array}_0")
        assert process.wait(400) == 0 and "4 of 4 done" in Path("out.txt").read_text()
    assert [resumed(folder) for folder in jobs(Path("sweep"))] == [1, 0, 0, 0]
    assert_same_sweep(local, Path("sweep"))


def test_slurm_run_preempted(local: Path, slurm: Slurm) -> None:
    arguments = [*RUN, "test=false", "seed=1", "optimizer.lr=0.01"]
    job = slurm.run("sbatch", "-o", "out.txt", str(ROOT / "docs" / "train.sbatch"), *arguments).split()[-1]
    wait_for(lambda: epochs(f"runs/slurm/{job}") > 2)
    preempt(slurm, job)
    wait_for(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.state(job) == "COMPLETED", Path("out.txt").read_text()
    assert resumed(Path(f"runs/slurm/{job}")) == 1
    assert_same_run(jobs(local)[3], Path(f"runs/slurm/{job}"))


def test_slurm_run_out_of_time(slurm: Slurm) -> None:
    """SLURM warns 120 s before the limit, here at the start: a step, a checkpoint, back into the queue."""
    job = slurm.run("sbatch", "-o", "out.txt", "--time=1", str(ROOT / "docs" / "train.sbatch"), *RUN).split()[
        -1
    ]
    wait_for(lambda: slurm.state(job) == "PENDING" and Path("runs/slurm").exists())
    slurm.run("scancel", job)
    assert "stopped after step " in Path("out.txt").read_text()
    assert json.loads(Path(f"runs/slurm/{job}/status.json").read_text())["status"] == "stopped"
    assert Path(f"runs/slurm/{job}/checkpoints/last.ckpt").exists()


def test_ranks_of_srun_and_torchrun(slurm: Slurm) -> None:
    """One directory, one set of files; the same as where Lightning starts the second rank."""
    assert imgcls("train", *DDP, "hydra.run.dir=own").returncode == 0
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "-m",
        "imgcls",
        "train",
        *DDP,
    ]
    wrong = subprocess.run(torchrun, capture_output=True, text=True)
    assert (
        "2 processes were started for one run: give all of them one folder, hydra.run.dir=…" in wrong.stderr
    )
    assert not Path("runs").exists()
    subprocess.run(
        [*torchrun, "hydra.run.dir=torchrun"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    slurm.environment["MASTER_ADDR"] = "127.0.0.1"  # n1 and n2 are no names of this machine's network
    two = (
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        "imgcls",
        "train",
        *DDP,
        "trainer.num_nodes=2",
        "trainer.devices=1",
    )
    slurm.run(*two, "hydra.run.dir=srun")
    for other in ("torchrun", "srun"):
        assert_same_run(Path("own"), Path(other))
        assert files(Path(other)) == files(Path("own")) - {"train_rank1.log"}


@pytest.mark.parametrize("launcher", ["joblib", "ray", "slurm"])
def test_a_job_that_dies_takes_none_along(launcher: str, request: pytest.FixtureRequest) -> None:
    """Its process ends while it makes its optimizer, beside a job that trains and before one not begun."""
    Path("dies.py").write_text("import os\n\n\ndef Optimizer(params, **options):\n    os._exit(3)\n")
    variables = request.getfixturevalue("slurm").environment if launcher == "slurm" else {}
    done = imgcls(
        "train", "-m", *RUN, "test=false", f"launcher={launcher}", "hydra.sweep.dir=sweep",
        "trainer.max_epochs=2",
        "optimizer._target_=torch.optim.AdamW,dies.Optimizer,torch.optim.NAdam,torch.optim.RAdam",
        timeout=500, **variables, PYTHONPATH=f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}",
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "imgcls train: 1 of 4 jobs failed, the others are done: 1_optimizer._target_=dies.Optimizer"
        in done.stderr
    )
    assert "sweep sweep: 3 of 4 done, 1 failed; best val/top1 0." in done.stdout
    ends = [folder / "status.json" for folder in jobs(Path("sweep"))]
    found = [json.loads(path.read_text())["status"] if path.exists() else None for path in ends]
    assert found == ["finished", "running", "finished", "finished"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_ray_cluster_that_loses_a_node(local: Path) -> None:
    try:
        with (
            Ray() as ray,
            begun(*SWEEP, "launcher=ray", f"{ADDRESS}={ray.address}", "hydra.sweep.dir=sweep") as process,
        ):
            wait_for(lambda: epochs("sweep/0_*") > 2 and epochs("sweep/1_*") > 2, process)
            ray.lose_a_node()
            assert process.wait(400) == 0 and "4 of 4 done" in Path("out.txt").read_text()
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert sorted(resumed(folder) for folder in jobs(Path("sweep"))) == [0, 0, 0, 1]
    assert_same_sweep(local, Path("sweep"))


def test_slurm_search_killed_and_finished(slurm: Slurm) -> None:
    """Two trials at a time, each a job of its own; they run on without the command, which then waits."""
    search = (*SWEEP[:-2], "sweep=random", "sweep.n_trials=5", "sweep.n_jobs=2", "sweep.name=search")
    command = (*search, "optimizer.lr=0.001,0.01", "launcher=slurm", "hydra.launcher.partition=low")
    folder = Path("runs/sweeps/search")
    with begun(*command, **slurm.environment) as process:
        wait_for(lambda: epochs("runs/sweeps/search/1_*") > 2, process)
    done = imgcls(*command, timeout=500, **slurm.environment)
    assert done.returncode == 0 and "5 of 5 done" in done.stdout, done.stdout + done.stderr
    assert "failed" not in done.stdout
    for path in jobs(folder):
        assert len((path / "metrics.csv").read_text().splitlines()) == 21 and not resumed(path)
