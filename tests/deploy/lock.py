"""Makes `hashes.txt` of `constraints.txt`: `python -m tests.deploy.lock`, with `uv` installed (`pip install uv`).

Every package that `make setup-dev` installs, with the SHA-256 of each of its archives, of every platform and Python.
torch and what it alone brings are left out: other indexes have other archives of it, such as those for CPUs alone.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints.txt"
LOCK = ROOT / "hashes.txt"
OLDEST = "3.11.5"
"""The oldest Python that all pinned packages take."""
LEFT_OUT = "torch"
"""Installed without hashes."""
HEAD = """\
# Made by `python -m tests.deploy.lock` of constraints.txt. `make HASHED=1 setup-dev` installs these archives alone.
"""


def main() -> int:
    """Exit code: that of uv."""
    with tempfile.TemporaryDirectory(prefix="sidecast-lock-") as folder:
        never = Path(folder) / "never.txt"
        never.write_text(f"{LEFT_OUT}; python_version < '3'\n", encoding="utf-8")
        made = Path(folder) / "hashes.txt"
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST, "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--no-emit-package", "pip", "--override", str(never)]
        command += ["--constraint", str(PINS), "--extra", "dev", "--output-file", str(made), "pyproject.toml"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code == 0:
            LOCK.write_text(HEAD + made.read_text(encoding="utf-8"), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
