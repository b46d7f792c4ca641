"""What to install where a command needs packages that the base installation does not have."""

from collections.abc import Mapping, Sequence

OF_EXTRAS = frozenset(
    {
        "PIL",
        "grpc_reflection",
        "huggingface_hub",
        "numpy",
        "peft",
        "psutil",
        "pyarrow",
        "ray",
        "requests",
        "sacrebleu",
        "safetensors",
        "sentencepiece",
        "seqeval",
        "sklearn",
        "tokenizers",
        "torch",
        "transformers",
        "yaml",
    }
)
"""Modules that `pip install sidecast` alone does not bring."""
EXTRA: Mapping[str, str] = {
    "serve": "serve",
    "deploy": "cluster",
    "status": "cluster",
    "batch": "cluster",
    "compare": "compare",
    "absorb": "absorb",
}
"""By command; others need `train`."""
EXTRA_OF_MODULE: Mapping[str, str] = {
    "accelerate": "distributed",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Of modules that an option needs, whatever the command."""


def missing_text(module: str | None, words: Sequence[str], commands: Sequence[str]) -> str | None:
    """What to do about a module that cannot be imported; None where it is none of an extra.

    Args:
        words: the command line.
        commands: names of commands.
    """
    name = (module or "").partition(".")[0]
    if name not in OF_EXTRAS and name not in EXTRA_OF_MODULE:
        return None
    command = next((word for word in words if word in commands), "train")
    extra = EXTRA_OF_MODULE.get(name) or EXTRA.get(command, "train")
    return f"{name} is not installed; sidecast {command} needs it here: pip install 'sidecast[{extra}]'"
