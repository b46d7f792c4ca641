"""The CPU quota of a container, from control groups of both versions, and the variable that OpenMP reads."""

import logging
import os
import sys
from pathlib import Path

import pytest

from serving.cores import SPINS, cpu_quota, most_threads, set_spins

V2 = "0::/pod/server\n"
V1 = "7:blkio:/\n2:cpu,cpuacct:/pod/server\n1:cpuset:/other\n"


def write(root: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / name).write_text(text)
    (root / "own").write_text(own)
    return root / "cgroup", root / "own"


@pytest.mark.parametrize(
    ("files", "own", "quota", "threads"),
    [
        ({"pod/server/cpu.max": "150000 100000\n"}, V2, 1.5, 1),
        ({"pod/server/cpu.max": "max 100000\n"}, V2, None, None),
        ({"pod/server/cpu.max": "400000 100000\n", "pod/cpu.max": "250000 100000\n"}, V2, 2.5, 2),
        ({"cpu.max": "50000 100000\n"}, V2, 0.5, 1),  # a container that sees only its own group
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2.0, 2),
        (
            {
                "cpu,cpuacct/pod/server/cpu.cfs_quota_us": "150000\n",
                "cpu,cpuacct/pod/server/cpu.cfs_period_us": "100000",
            },
            V1,
            1.5,
            1,
        ),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 3.0, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, None, None),
        ({"cpuset/other/cpu.max": "100000 100000\n"}, V1, None, None),
        ({"pod/server/cpu.max": "what is this"}, V2, None, None),
        ({"pod/server/cpu.max": "100000 0"}, V2, None, None),
    ],
)
def test_the_quota_is_the_least_of_the_groups_above(
    tmp_path: Path, files: dict[str, str], own: str, quota: float | None, threads: int | None
) -> None:
    root, lines = write(tmp_path, files, own)
    assert cpu_quota(root, lines) == quota
    assert most_threads(root, lines) == threads


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "nothing") is None


def test_spins_are_set_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPINS, "7")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    set_spins(-1)
    assert os.environ[SPINS] == "7"
    set_spins(0)
    assert os.environ[SPINS] == "0"


def test_spins_are_not_set_once_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(SPINS, raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    with caplog.at_level(logging.WARNING):
        set_spins(3000)
    assert SPINS not in os.environ
    assert "set GOMP_SPINCOUNT=3000" in caplog.text
