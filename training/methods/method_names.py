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
VARIANT_NAMES = (
    "lst-r4",
    "lst-r16",
    "lst-r32",
    "lst-all",
    "lst-quarter",
    "lst-last",
    "lst-magnitude",
    "lst-fisher",
    "lst-no-taps",
    "lora-r2",
    "lora-r32",
    "adapters-16",
    "adapters-256",
    "full-half",
    "full-quarter",
)
"""The same methods in another size, or with another start: the LST paper's ablations."""
FIGURES = {
    "figure-1": METHOD_NAMES[1:],
    "figure-5": (
        *("lst-r4", "lst", "lst-r16", "lst-r32"),
        *("lora-r2", "lora", "lora-r32"),
        *("adapters-16", "adapters", "adapters-256"),
    ),
    "figure-6": ("lst-all", "lst", "lst-quarter", "lst-last", "full-quarter", "full-half", "full"),
    "figure-7": ("lst", "lst-magnitude", "lst-fisher"),
    "figure-8": ("lst", "lst-no-taps", "side-tuning"),
}
"""The methods of the LST paper's figures: quality over memory of all methods, by size, by the layers that are trained;
quality by start, and without a ladder."""
