"""Describes the machine of a measurement: processor, instruction sets, torch, commit. No host name, no path."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CPU_FACTS = Path("/proc/cpuinfo")
"""Linux's description of the processor."""
INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx": "amx_tile",
    "asimd": "asimd",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""Instruction sets that change the speed of matrix products (x86, then ARM): the flag in CPU_FACTS by name."""
BFLOAT16 = "AVX512-BF16/VNNI"
NAMED_BY = {
    ("amx",): "AMX",
    ("avx512_bf16", "avx512_vnni"): BFLOAT16,
    ("avx512_bf16",): "AVX512-BF16",
    ("avx512_vnni",): "AVX512-VNNI",
    ("avx512f",): "AVX512",
    ("avx2",): "AVX2",
    ("bf16",): "ARM-BF16",
    ("asimd",): "NEON",
}
"""How results name a processor: by the first of these whose instruction sets it has."""
EARLIER = "AVX2"
"""The processor of all results that do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts that a figure needs to be understood."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    instruction_sets: list[str] | None
    """Those of INSTRUCTION_SETS that the processor has; None if the system does not say."""
    torch_cpu: str
    """Instruction set of torch's CPU kernels, such as AVX2. Its matrix library may use newer ones."""
    gpu: str | None
    """Name of the GPU, if torch ran on one."""
    device: str
    dtype: str
    torch: str
    threads: int
    """Threads of torch on the CPU."""
    python: str
    system: str
    commit: str
    """Commit of this project; "unknown" outside a git checkout."""
    modified: bool
    """Whether the code differed from that commit."""
    load: float
    """Load average of the last minute: above about 1, other processes were running too."""

    @property
    def slug(self) -> str:
        """Name of the GPU, or else of the CPU and its instruction set, for file names."""
        return slug(self.gpu or f"{self.cpu} {instructions(self.to_dict())}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def look(device: str = "cpu", dtype: str = "float32") -> Machine:
    """Return the facts of this machine. Call it before measuring: the load average must not include the benchmark."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_sets=instruction_sets(),
        torch_cpu=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        device=device,
        dtype=dtype,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        system=platform.system(),
        commit=_git("rev-parse", "HEAD") or "unknown",
        modified=bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    )


def cpu_name() -> str:
    """Return the processor's model, as the system names it."""
    return _cpu_fact("model name") or platform.processor() or platform.machine() or "unknown"


def instruction_sets() -> list[str] | None:
    """Return those of INSTRUCTION_SETS that the processor has; None if the system does not say, as on macOS."""
    flags = _cpu_fact("flags") or _cpu_fact("Features")  # x86, ARM
    if flags is None:
        return None
    present = set(flags.split())
    return [name for name, flag in INSTRUCTION_SETS.items() if flag in present]


def instructions(machine: Mapping[str, Any]) -> str:
    """Name the instruction set of a machine in a results file: CUDA, or the processor's best for matrix products."""
    if machine["gpu"] is not None:
        return "CUDA"
    present = machine.get("instruction_sets")
    if present is None:
        return EARLIER
    return next((name for sets, name in NAMED_BY.items() if set(sets) <= set(present)), "unknown instructions")


def _cpu_fact(name: str) -> str | None:
    """Return the first value of that name in CPU_FACTS; None if there is none."""
    try:
        lines = CPU_FACTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def slug(name: str) -> str:
    """Return a name for files: `Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz` is intel-xeon-gold-6338."""
    plain = re.sub(r"\((r|tm|c)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", name.lower())
    return "-".join(re.findall(r"[a-z0-9]+", plain)) or "unknown"


def _git(*words: str) -> str:
    """Return git's output, stripped; empty if there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
