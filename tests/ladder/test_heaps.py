"""What the C library's heaps keep. Each test is a process of its own: the settings hold for all of a process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ladder.heaps import share_heaps, trim_heaps

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heaps of another C library")
LARGE_PAGES = 1024
FAULTS = f"""
import resource, sys, threading
import torch
from ladder import load_backbone

load_backbone(sys.argv[1])

def make(times):
    for _ in range(times):
        torch.ones({LARGE_PAGES}, 1024)  # 4 MiB
        torch.ones({LARGE_PAGES}, 512)

def count():
    make(30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    make(3)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

count()
thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


def faults(folder: Path, **environment: str) -> list[int]:
    """Page faults of six tensors of 4 and 2 MiB, made and freed again, on the main thread and on another one."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, str(folder)]
    done = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@needs_glibc
@pytest.mark.slow
def test_a_pass_uses_the_memory_of_the_last_one(tiny_t5: Path) -> None:
    assert max(faults(tiny_t5)) < LARGE_PAGES // 4


@needs_glibc
@pytest.mark.slow
@pytest.mark.parametrize(
    "own", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_what_the_environment_says_of_the_heaps_holds(own: dict[str, str], tiny_t5: Path) -> None:
    assert min(faults(tiny_t5, **own)) > 3 * LARGE_PAGES


def test_heaps_are_shared_and_trimmed_wherever_that_is_known() -> None:
    share_heaps()
    trim_heaps()
