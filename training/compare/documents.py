"""The document of one run, with the fields of PEFT's method_comparison.

Where PEFT's suite has what an accelerator reserved, `accelerator_memory_...` are bytes as `StepLog` counts them: of
each training step, on a CPU counted and on a GPU torch's peak. "test accuracy" is the score by the task's metric. What
PEFT's suite does not have is under `sidecast`.
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from training.compare.inputs import Inputs
from training.compare.measured import Measured
from training.methods.methods import Method

PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch", "sidecast")
SUCCESS, NO_MEMORY, FAILED = "success", "out of memory", "failed"


def run_config(method: Method, seed: int, rate: float | None, inputs: Inputs) -> dict[str, Any]:
    """What a run is made of besides what all runs share."""
    settings = inputs.settings
    return {
        "model_id": inputs.backbone.name,
        "task": inputs.spec.name,
        "metric": inputs.spec.metric,
        "method": method.name,
        "seed": seed,
        "learning_rate": rate,
        "epochs": settings.epochs,
        "batch_size": settings.batch_rows,
        "max_seq_length": inputs.spec.max_source_tokens,
        "dtype": "float32",
    }


def run_document(
    config: Mapping[str, Any],
    inputs: Inputs,
    measured: Measured | None,
    *,
    created_at: str,
    seconds: float,
    **more: Any,
) -> dict[str, Any]:
    """One run, JSON-ready.

    Args:
        config: as `run_config` made it.
        measured: None: the run failed, and `more` says how.
        created_at: when it began, ISO 8601.
        seconds: from its begin to its end.
        more: `status`, `error` and `command`.
    """
    done = measured or Measured(scores={})
    steps = done.steps
    metrics = [{"epoch": number + 1, **line} for number, line in enumerate(done.epochs)]
    if measured is not None:
        metrics.append(
            {
                "test accuracy": done.scores[inputs.spec.metric],
                "train loss": done.epochs[-1]["loss"] if done.epochs else 0.0,
                "train samples": len(inputs.training.examples) * len(done.epochs),
                "train total tokens": inputs.training_rows.token_count * len(done.epochs),
                **done.scores,
            }
        )
    return {
        "run_info": {
            "created_at": created_at,
            "total_time": seconds,
            "experiment_name": f"{config['method']}/{inputs.backbone.name}-{config['task']}-seed-{config['seed']}",
            "peft_branch": "",
            "train_config": dict(config),
            "peft_config": done.peft_config,
            "error_msg": more.get("error", ""),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": steps.mean if steps else 0,
            "accelerator_memory_max": steps.peak if steps else 0,
            "accelerator_memory_reserved_99th": steps.high if steps else 0,
            "train_time": done.train_seconds,
            "file_size": done.file_bytes,
            "num_trainable_params": done.trained,
            "num_total_params": done.total,
            "status": more.get("status", SUCCESS),
            "metrics": metrics,
        },
        "sidecast": {
            "memory": "torch.cuda.max_memory_allocated" if inputs.backbone.device.type == "cuda" else "counted",
            "step_time": steps.seconds if steps else None,
            "cpu_time": done.cpu_seconds,
            "serving": None if done.serving is None else asdict(done.serving),
            "forgetting": done.forgetting,
            "scored": "validation" if inputs.test is None else "test",
            "command": more.get("command", ""),
        },
        "meta_info": {
            "model_info": {"sha": inputs.backbone.fingerprint, "created_at": None},
            "dataset_info": {
                name: {"sha": part.sha256, "created_at": None}
                for name, part in (("train", inputs.training), ("validation", inputs.validation), ("test", inputs.test))
                if part is not None
            },
            "package_info": _packages(),
            "system_info": _system(inputs.backbone.device),
            "pytorch_info": torch.__config__.show(),
        },
    }


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        found[f"{package}-version"] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            found[f"{package}-version"] = importlib.metadata.version(package)
        found[f"{package}-commit-hash"] = None
    return found


def _system(device: torch.device) -> dict[str, Any]:
    machine = platform.uname()
    return {
        "system": machine.system,
        "release": machine.release,
        "version": machine.version,
        "machine": machine.machine,
        "processor": platform.processor(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else "N/A",
        "threads": torch.get_num_threads(),
    }
