"""Measures each stage of a serving process's start, in wall and CPU seconds; prints one JSON line.

    python -m benchmarks.harness.cold_start BACKBONE REGISTRY STARTED

STARTED is the time.time() at which the process was started. The stages are those of `serving.components.assemble`, with
one thread of torch: the process, imports, backbone, tokenizer, side networks, warm-up, joining the servers.
"""

import json
import subprocess
import sys
import time
from itertools import pairwise

from benchmarks.harness.samples import BenchmarkError, Figures

STAGES = ("process", "imports", "backbone", "tokenizer", "side networks", "warm-up", "join")
LIMIT_S = 300.0


def measure_start(backbone: str, registry: str) -> dict[str, Figures]:
    """Start a process; return its wall seconds (`s`) and CPU seconds (`cpu_s`) by stage.

    Raises:
        BenchmarkError: it failed; its error is on standard error.
    """
    command = [sys.executable, "-m", "benchmarks.harness.cold_start", backbone, registry, repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise BenchmarkError("the start that was to be timed failed; read its error above")
    return json.loads(done.stdout.splitlines()[-1])


def _stages(folder: str, registry_url: str, started: float) -> dict[str, Figures]:
    """Run and measure the stages in this process."""
    ends = [(started, 0.0), _now()]
    import torch

    from ladder import load_backbone, load_tokenizer
    from serving.config import BatchConfig, EngineConfig, LoadConfig
    from serving.engine import warm_up
    from serving.versions import Loader, Presence, Reconciler, SidePool
    from side_registry import Registry

    torch.set_num_threads(1)
    ends.append(_now())
    backbone = load_backbone(folder)
    ends.append(_now())
    tokenizer = load_tokenizer(folder)
    ends.append(_now())
    registry, pool = Registry.open(registry_url), SidePool()
    reconciler = Reconciler(registry, pool, Loader(registry, backbone, tokenizer, LoadConfig()).load)
    reconciler.start()
    ends.append(_now())
    warm_up(backbone, pool.snapshot().residents.values(), BatchConfig(), EngineConfig())
    ends.append(_now())
    presence = Presence(registry, "benchmark:0", lambda: pool.snapshot().generation)
    presence.start()
    ends.append(_now())
    presence.stop()
    reconciler.stop()
    spans = ((end[0] - begin[0], end[1] - begin[1]) for begin, end in pairwise(ends))
    return {name: {"s": wall, "cpu_s": cpu} for name, (wall, cpu) in zip(STAGES, spans, strict=True)}


def _now() -> tuple[float, float]:
    return time.time(), time.process_time()


if __name__ == "__main__":
    print(json.dumps(_stages(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
