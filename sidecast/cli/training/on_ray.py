"""`sidecast train --ray-workers N`: the command on N workers of a Ray cluster, which Ray Train starts and connects.

Each worker runs the same command in the same folder, which all machines must have under the same path, as one process
of a run on several (`training.processes`). If a worker is lost, all are started again, and the run goes on after its
last whole epoch.
"""

import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sidecast.cli.app import UserError
from sidecast.cli.app import main as run_command
from sidecast.cli.settings import GroupedCommand
from sidecast.cli.training.task_files import filled

if TYPE_CHECKING:
    from serving.offline.placing import Placed

ATTEMPTS = 3
"""Times that the workers are started, if some of them are lost."""
PASSED_ON = ("SIDECAST_", "WANDB_", "HF_")
"""Beginnings of the environment variables that workers get from this process."""
ALONE = ("--ray-workers", "0")
"""What makes of the words of a command those of a worker."""


class RememberingCommand(GroupedCommand):
    """A command that knows its words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click has it; `words_of` has the words afterwards."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)


def words_of(ctx: click.Context) -> list[str]:
    """The words that followed the command's name."""
    return ctx.meta[__name__]


def train_on_ray(words: Sequence[str], workers: int, address: str, device: str, output: str) -> NoReturn:
    """Run `sidecast train` with these words on several workers, print what the first one prints, and exit as it does.

    Args:
        address: of a cluster; "" starts one on this machine, for as long as it takes.
        device: as `--device` has it; auto: GPUs, if the cluster has any.
        output: the run folder, as `--output` has it. Ray Train's own files are beside it while the run goes: all
            machines must see them.

    Raises:
        UserError: workers were lost again and again, or the place of the run folder cannot be written.
        NoRay, ClusterTooSmall: there is no such cluster, or it is too small.
    """
    from serving.offline.placing import Replicas, place
    from serving.offline.ray_session import ray_session

    with redirect_stdout(sys.stderr), ray_session(address) as nodes:  # Ray prints there what befalls workers
        placed = place(Replicas(address=address, device=device, count=workers), nodes, workers)
        code, out, err = _train([*words, *ALONE], placed, Path(filled(output, "task")).absolute().parent)
    click.echo(out, nl=False)
    click.echo(err, nl=False, err=True)
    sys.exit(code)


def _train(words: Sequence[str], placed: "Placed", beside: Path) -> tuple[int, str, str]:
    """Start the workers until they end by themselves. Exit code and output of the first one, or of one that failed."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from training.processes import PATIENCE

    outcome = ray.remote(num_cpus=0)(_Outcome).remote()
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    work = partial(_work, list(words), str(Path.cwd()), environment, outcome)  # no config: Ray may show one
    resources = {"CPU": placed.cpus, "GPU": placed.gpus}
    try:
        beside.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".ray-train-", dir=beside)
    except OSError as error:
        raise UserError(f"{beside} cannot be written ({error.strerror}); choose another --output") from None
    with scratch as folder:
        for attempt in range(1, ATTEMPTS + 1):
            lost = ""
            trainer = TorchTrainer(
                work,
                torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
                scaling_config=ScalingConfig(
                    num_workers=placed.count,
                    use_gpu=placed.gpus > 0,
                    resources_per_worker={name: value for name, value in resources.items() if value},
                ),
                run_config=RunConfig(storage_path=folder),
            )
            try:
                trainer.fit()
            except TrainingFailedError as error:
                lost = str(error).strip().splitlines()[-1]
            told: tuple[int, str, str] | None = ray.get(outcome.read.remote())  # type: ignore[assignment]
            if told is not None:
                return told
            click.echo(f"workers were lost, attempt {attempt} of {ATTEMPTS}: {lost}", err=True)
    raise UserError(f"workers were lost {ATTEMPTS} times; the same command goes on after the last whole epoch")


class _Outcome:
    """An actor that keeps what one worker tells: a worker that failed, or the first one."""

    def __init__(self) -> None:
        self._told: tuple[int, str, str] | None = None

    def tell(self, code: int, out: str, err: str) -> None:
        """The first failure stays."""
        if self._told is None or self._told[0] == 0:
            self._told = (code, out, err)

    def read(self) -> tuple[int, str, str] | None:
        """None: no worker came to its end."""
        return self._told


class WorkerFailed(Exception):
    """Ends the other workers."""


def _work(words: Sequence[str], folder: str, environment: Mapping[str, str], outcome: Any) -> None:
    """What a worker does."""
    import ray
    import ray.train

    os.environ.update(environment)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            run_command(["train", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
    if code or ray.train.get_context().get_world_rank() == 0:
        ray.get(outcome.tell.remote(code, out.getvalue(), err.getvalue()))
    if code:
        raise WorkerFailed
