"""The names of the methods, which `sidecast compare --help` needs without torch; `methods` has the methods."""

METHOD_NAMES = (
    "majority",
    "linear-probe",
    "attention-probe",
    "lst",
    "side-tuning",
    "bitfit",
    "prompt-tuning",
    "ia3",
    "ln-tuning",
    "lora",
    "adapters",
    "pruning",
    "full",
)
