"""Train as a submitit job that resumes automatically after preemption."""

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
from sam2kit.utils.paths import file_name, open_run_dir
from sam2kit.utils.processes import NO_TORCHRUN_LOGS, start

if TYPE_CHECKING:
    from submitit import Job

# SLURM sends a signal this long before it ends the job. Training then finishes its current step and
# saves last.ckpt. If that takes longer than SAVING_SECONDS, it is killed to leave time to requeue.
NOTICE_SECONDS = 120
SAVING_SECONDS = NOTICE_SECONDS - 20
MASTER_PORT = 29411


@dataclass(frozen=True)
class TrainingJob:
    """Run training with ``--resume auto`` on each node of a job.

    submitit calls the object on the node, and calls ``checkpoint`` when the cluster announces
    preemption or the time limit. The object is pickled into the run directory, so its attributes
    are plain values.

    Attributes:
        config_file, run_dir: paths that are valid on all nodes.
        devices: number of devices per node.
        nodes: number of nodes; with more than one, training runs under torchrun.
    """

    config_file: str
    run_dir: str
    devices: str
    nodes: int = 1

    def command(self, node: int, first_host: str) -> list[str]:
        """Return the module to run on one node, and its arguments.

        Args:
            node: index of the node, from 0.
            first_host: host name of node 0, which coordinates the ranks.
        """
        train = ["sam2kit", "train", "--config", self.config_file, "--run-dir", self.run_dir]
        train += ["--resume", "auto"]
        if self.nodes == 1:
            return train
        torchrun = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.devices}"]
        torchrun += [f"--node-rank={node}", f"--master-addr={first_host}"]
        torchrun += [f"--master-port={MASTER_PORT}", NO_TORCHRUN_LOGS, "-m"]
        return ["torch.distributed.run", *torchrun, *train]

    def __call__(self) -> str:
        """Train until the end and return the run directory.

        Raises:
            TrainingError: training failed; the job's log contains its output.
        """
        from submitit import JobEnvironment

        job = JobEnvironment()
        process = start(*self.command(job.node, job.hostnames[0]))
        _running.append(process.pid)
        # Poll, because checkpoint runs in a signal handler and would deadlock on the lock that
        # Popen.wait holds.
        while process.poll() is None:
            time.sleep(0.2)
        if process.returncode:
            raise TrainingError(
                f"training in {self.run_dir} failed with exit code {process.returncode}",
                hint=f"see the log of this job: {job.paths.stderr}",
            )
        return self.run_dir

    def checkpoint(self) -> Any:
        """Stop training after its current step and return the job to requeue.

        If training does not stop in time, it is killed, and the requeued job resumes from the
        previous ``last.ckpt``.
        """
        from submitit.helpers import DelayedSubmission

        running = [psutil.Process(pid) for pid in _running if psutil.pid_exists(pid)]
        for process in running:
            process.terminate()
        for process in psutil.wait_procs(running, SAVING_SECONDS)[1]:
            process.kill()
        return DelayedSubmission(self)


# Ids of the training processes that this process started. Not an attribute of TrainingJob, because
# that object is pickled and requeued.
_running: list[int] = []


def submit(
    config: Config,
    run_dir: Path,
    hours: float = 24.0,
    partition: str | None = None,
    cluster: str = "slurm",
) -> Job[str]:
    """Submit a training job that saves and requeues itself before its time limit.

    Args:
        config: the configuration. The job requests ``trainer.num_nodes`` nodes, each with
            ``trainer.devices`` GPUs (none with ``trainer.accelerator=cpu``) and one core per device
            and DataLoader worker.
        run_dir: the run directory. The job's logs are written to its subdirectory ``slurm``. An
            existing run is resumed.
        hours: time limit of the job, after which it is requeued.
        partition: SLURM partition. If None (default), the cluster's default partition.
        cluster: ``slurm``, or ``local`` to run the job on this machine in the background.

    Returns:
        submitit's job.

    Raises:
        ConfigError: submitit or SLURM is missing, ``trainer.devices`` is not a number, or a local
            job has several nodes.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            f"submitit is not installed ({error})",
            hint="install it with: pip install 'sam2kit[slurm]'",
        ) from error
    trainer = config.trainer
    if not trainer.devices.isdigit():
        raise ConfigError(
            key="trainer.devices",
            value=trainer.devices,
            expected="a number in a submitted job",
            hint="set it to the number of GPUs per node",
        )
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            "SLURM is not available on this machine (sbatch not found)",
            key="--cluster",
            value=cluster,
            hint="submit from a login node of the cluster, or run the job on this machine with "
            "--cluster local",
        )
    if trainer.num_nodes > 1 and cluster == "local":
        raise ConfigError(
            key="trainer.num_nodes",
            value=trainer.num_nodes,
            expected="1 with --cluster local",
            hint="set trainer.num_nodes=1, or submit to SLURM",
        )
    for key, text in (("--run-dir", str(run_dir.resolve())), ("--partition", partition or "")):
        # submitit copies both values into lines of the batch script.
        if not text.isprintable():
            raise ConfigError(
                "contains a line break or another control character",
                key=key,
                value=text,
                hint="rename the directory"
                if key == "--run-dir"
                else "use the name of a partition",
            )
    logs = run_dir.resolve() / "slurm"
    open_run_dir(logs, config.output_dir)
    config_file = logs / "submitted.yaml"
    save_config(config, config_file)
    devices = int(trainer.devices)
    executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=1000)
    parameters: dict[str, Any] = {
        "name": f"sam2kit-{file_name(run_dir.name)}",
        "timeout_min": max(round(60 * hours), 1),
        "nodes": trainer.num_nodes,
        "tasks_per_node": 1,  # torchrun starts the node's ranks
        "cpus_per_task": devices * (config.dataset.num_workers + 1),
        "gpus_per_node": 0 if trainer.accelerator == "cpu" else devices,
        "slurm_signal_delay_s": NOTICE_SECONDS,
    }
    if partition is not None:
        parameters["slurm_partition"] = partition
    executor.update_parameters(**parameters)
    job = TrainingJob(str(config_file), str(run_dir.resolve()), trainer.devices, trainer.num_nodes)
    return executor.submit(job)
