"""A SLURM and a Ray of two nodes on this machine, for the tests.

Debian's packages of SLURM are unpacked, not installed.
"""

import getpass
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGES = (
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "munge",
    "libmunge2",
    "libhwloc15",
)
LIBRARIES = "usr/lib/x86_64-linux-gnu"
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PreemptExemptTime=0
KillWait=30
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=10 State=UP
"""


SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
scontrol -o show jobs | sed -nE '
s/^JobId=([0-9]+) ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .* JobState=([A-Z_]+) \
.* NodeList=([^ ]*) .*/\\2_\\3|\\4|\\5/p
s/^JobId=([0-9]+) JobName.* JobState=([A-Z_]+) .* NodeList=([^ ]*) .*/\\1|\\2|\\3/p'
"""


class Unavailable(Exception):
    """What is needed can't be had here."""


class Slurm:
    """slurmctld and two slurmd of one CPU each, `n1` and `n2`, on 127.0.0.1 until the `with` ends.

    What is submitted to the partition `high` takes the place of what runs in `low`, which is put back into
    the queue. There is no accounting, which takes a database: a script in the place of `sacct` answers from
    what slurmctld remembers.

    Args:
        folder: for all of its files.

    Raises:
        Unavailable: the packages can't be fetched, or a daemon doesn't start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        self.root = Path("/") if Path("/usr/sbin/slurmctld-wlm").exists() else unpacked(folder)
        plugins = self.root / LIBRARIES / "slurm-wlm"
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "LD_LIBRARY_PATH": f"{plugins.parent}:{plugins}",
            "PATH": f"{folder}:{self.root / 'usr/bin'}:{os.environ['PATH']}",
        }
        (folder / "sacct").write_text(SACCT)
        (folder / "sacct").chmod(0o755)
        (folder / "state").mkdir()
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        values = {"user": getpass.getuser(), "folder": folder, "plugins": plugins, "ports": free_ports(3)}
        (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname().partition(".")[0], **values))

    def __enter__(self) -> "Slurm":
        programs = self.root / "usr/sbin"
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
        self.start(str(programs / "munged"), "--foreground", "--force", *options)
        self.start(str(programs / "slurmctld-wlm"), "-D")
        for node in ("n1", "n2"):
            (self.folder / f"spool-{node}").mkdir()
            self.start(str(programs / "slurmd-wlm"), "-D", "-N", node, "-d", str(programs / "slurmstepd-wlm"))
        end = time.monotonic() + 60
        while self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D", check=False).strip() != "2":
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                self.__exit__(None, None, None)
                raise Unavailable(
                    f"SLURM doesn't start: {(self.folder / 'slurmctld.log').read_text()[-500:]}"
                )
            time.sleep(0.5)
        return self

    def start(self, *command: str) -> None:
        with (self.folder / "daemons.out").open("ab") as out:
            environment = {**os.environ, **self.environment}
            self.processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))

    def run(self, *command: str, check: bool = True) -> str:
        """Returns what one of SLURM's commands prints."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, check=check, capture_output=True, text=True).stdout

    def state(self, job: str) -> str:
        """Returns the state of a job, such as RUNNING."""
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith("JobState="))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.run("scancel", "--user", getpass.getuser(), check=False)
        end = time.monotonic() + 40  # KillWait, and some
        while self.run("squeue", "-h", check=False) and time.monotonic() < end:
            time.sleep(0.5)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def unpacked(folder: Path) -> Path:
    """Returns the folder that SLURM's packages were fetched and unpacked into."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unavailable("SLURM is not installed, and there is no apt-get to fetch it")
    packages, root = folder / "packages", folder / "root"
    packages.mkdir()
    done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=packages, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"SLURM's packages can't be fetched: {done.stderr.strip().splitlines()[-1]}")
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    return root


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Ray:
    """A Ray of two nodes of one CPU each, until the `with` ends.

    To join it takes the token of the environment.

    Raises:
        Unavailable: Ray isn't installed.
    """

    def __enter__(self) -> "Ray":
        if importlib.util.find_spec("ray") is None:
            raise Unavailable("Ray is not installed")
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # else the driver takes 127.0.0.1 for the network's address
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        os.environ |= self.environment
        from ray.cluster_utils import Cluster

        node: Any = {
            "num_cpus": 1,
            "node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": 2**27,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=node)
        self.address, self.second = self.cluster.address, self.cluster.add_node(**node)
        self.cluster.wait_for_nodes()
        return self

    def lose_a_node(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.cluster.shutdown()
        for name in self.environment:
            del os.environ[name]
