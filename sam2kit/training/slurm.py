"""Training as a job of a cluster, which goes on by itself after it was taken away (submitit)."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sam2kit.config.loading import save_config
from sam2kit.config.schema import Config
from sam2kit.utils.errors import ConfigError, TrainingError
from sam2kit.utils.processes import start

if TYPE_CHECKING:
    from submitit import Job

# Before a job's end; in them the step in progress ends and last.ckpt is written, and what has not
# ended by then is killed in time to queue up again.
NOTICE_SECONDS = 120
SAVING_SECONDS = NOTICE_SECONDS - 20
MASTER_PORT = 29411


@dataclass(frozen=True)
class TrainingJob:
    """What runs on each machine of a job: a training with ``--resume auto``, below torchrun if any.

    submitit calls it, and ``checkpoint`` when the cluster announces that it takes the machine away.
    It sends itself to the machine in a pickle, which lies in the run's own folder.

    Attributes:
        config_file, run_dir: seen by all machines under these names.
        devices, nodes: devices of a machine, and machines.
    """

    config_file: str
    run_dir: str
    devices: str
    nodes: int = 1

    def command(self, node: int, first_host: str) -> list[str]:
        """The module and its arguments on one machine of the job."""
        train = ["sam2kit", "train", "--config", self.config_file, "--run-dir", self.run_dir]
        train += ["--resume", "auto"]
        if self.nodes == 1:
            return train
        torchrun = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.devices}"]
        torchrun += [f"--node-rank={node}", f"--master-addr={first_host}"]
        torchrun += [f"--master-port={MASTER_PORT}", "-m"]
        return ["torch.distributed.run", *torchrun, *train]

    def __call__(self) -> str:
        """Train to the end; returns the run's folder.

        Raises:
            TrainingError: the training failed; its last lines are in the job's log.
        """
        from submitit import JobEnvironment

        job = JobEnvironment()
        process = start(*self.command(job.node, job.hostnames[0]))
        _running.append(process.pid)
        while process.poll() is None:  # no wait(), whose lock checkpoint would find taken
            time.sleep(0.2)
        if process.returncode:
            raise TrainingError(
                f"training in {self.run_dir} ended with exit code {process.returncode}; the log of "
                f"this job tells why: {job.paths.stderr}"
            )
        return self.run_dir

    def checkpoint(self) -> Any:
        """End after the step in progress; the job that is put into the queue again.

        A training that does not end in time is killed, and goes on from the ``last.ckpt`` before.
        """
        from submitit.helpers import DelayedSubmission

        running = [psutil.Process(pid) for pid in _running if psutil.pid_exists(pid)]
        for process in running:
            process.terminate()
        for process in psutil.wait_procs(running, SAVING_SECONDS)[1]:
            process.kill()
        return DelayedSubmission(self)


_running: list[int] = []  # the training of this process; beside the job, which is pickled


def submit(
    config: Config,
    run_dir: Path,
    hours: float = 24.0,
    partition: str | None = None,
    cluster: str = "slurm",
) -> Job[str]:
    """Put a training into the queue; before its time is over it saves, and queues up again.

    Args:
        config: ``trainer.num_nodes`` machines are asked for, each with ``trainer.devices`` GPUs
            (with ``trainer.accelerator=cpu`` none), and a core for each device and loader process.
        run_dir: the run's folder; the job's logs go to ``slurm`` in it. A run there goes on.
        hours: after which SLURM ends the job, and it queues up again.
        partition: SLURM's; None: the default one.
        cluster: ``local`` runs it on this machine, in the background.

    Raises:
        ConfigError: submitit is not installed, there is no SLURM here, or devices are not a number.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            f"submitit is not installed ({error}); install it with: pip install 'sam2kit[slurm]'"
        ) from error
    trainer = config.trainer
    if not trainer.devices.isdigit():
        raise ConfigError(
            f"trainer.devices is {trainer.devices!r}; a job asks for a number of them"
        )
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            "there is no SLURM here (no sbatch); log in where there is, or try the job on this "
            "machine with --cluster local"
        )
    if trainer.num_nodes > 1 and cluster == "local":
        raise ConfigError(f"trainer.num_nodes is {trainer.num_nodes}, and this machine is one")
    logs = run_dir.resolve() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    config_file = logs / "submitted.yaml"
    save_config(config, config_file)
    devices = int(trainer.devices)
    executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=1000)
    asked: dict[str, Any] = {
        "name": f"sam2kit-{run_dir.name}",
        "timeout_min": max(round(60 * hours), 1),
        "nodes": trainer.num_nodes,
        "tasks_per_node": 1,
        "cpus_per_task": devices * (config.dataset.num_workers + 1),
        "gpus_per_node": 0 if trainer.accelerator == "cpu" else devices,
        "slurm_signal_delay_s": NOTICE_SECONDS,
    }
    if partition is not None:
        asked["slurm_partition"] = partition
    executor.update_parameters(**asked)
    job = TrainingJob(str(config_file), str(run_dir.resolve()), trainer.devices, trainer.num_nodes)
    return executor.submit(job)
