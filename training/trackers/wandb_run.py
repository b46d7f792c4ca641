"""A run of Weights & Biases beside a run folder: each epoch's numbers, and the settings as its config.

The wandb package writes and sends them, and takes its own settings (`WANDB_MODE`, `WANDB_ENTITY`, `WANDB_DIR` ...).
`wandb-TASK.json` in the run folder names the run and its last epoch, so that a run that goes on goes on there too.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from training.errors import RunError
from training.run_folder import RunFolder
from training.trackers.numbers import numbers_of

ID_BYTES = 8


class WandbRun:
    """One run of Weights & Biases."""

    def __init__(self, project: str, name: str, folder: RunFolder, task: str, config: Mapping[str, Any]) -> None:
        """Begin it, or go on with the one that the folder names.

        Args:
            project: its project, which is made if it is not there.
            name: what people read.
            folder: the run folder.
            task: the task's name.
            config: the settings, JSON-ready.

        Raises:
            ModuleNotFoundError: wandb is not installed.
            RunError: it cannot be begun: nobody is logged in, the server does not answer; or the folder's note of it
                cannot be read.
        """
        import wandb

        self._folder, self._file = folder, f"wandb-{task}.json"
        self._note = self._read({"project": project, "id": secrets.token_hex(ID_BYTES), "epoch": 0})
        if self._note["project"] != project:
            remedy = f"give it again, or delete {self._file}"
            raise RunError(folder.path, f"is in the Weights & Biases project {self._note['project']!r}; {remedy}")
        try:
            self._run = wandb.init(
                project=project,
                id=self._note["id"],
                name=name,
                config=dict(config),
                resume="allow",
                reinit="create_new",  # a command may train several runs
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, OSError) as error:
            reason = " ".join(str(error).split())
            remedy = "log in (wandb login), or set WANDB_MODE=offline and send it later (wandb sync)"
            raise RunError(folder.path, f"Weights & Biases does not begin its run: {reason}; {remedy}") from None

    @property
    def url(self) -> str | None:
        """Where people see it; None while it is offline."""
        return self._run.url

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send the epochs that it lacks.

        Args:
            lines: of all epochs that are done, as `metrics.jsonl` has them.

        Raises:
            RunError: the run folder cannot be written.
        """
        new = [line for line in lines if line["epoch"] > self._note["epoch"]]
        if not new:
            return
        for line in new:
            self._run.log(dict(numbers_of(line)), step=line["epoch"])
        self._note = {**self._note, "epoch": new[-1]["epoch"]}
        self._folder.write_bytes(self._file, json.dumps(self._note).encode())

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

    def _read(self, first: Mapping[str, Any]) -> Mapping[str, Any]:
        """The folder's note, or the first one. Raises RunError."""
        try:
            note = json.loads((self._folder.path / self._file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return first
        except (OSError, ValueError) as error:
            raise RunError(self._folder.path, f"its {self._file} does not read ({error}); delete that file") from None
        if not isinstance(note, dict) or note.keys() != first.keys():
            raise RunError(self._folder.path, f"its {self._file} was not written by this program; delete that file")
        return note
