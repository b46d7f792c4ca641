"""Finds Chromium for the tests of the console; run as a program, it installs it where that is easy.

`python tests/serving/console/chromium.py` never fails: without Chromium these tests are skipped, which they say.
"""

import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
APT = ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium")


def find() -> str | None:
    """The path of the first that there is; None: there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def install() -> str | None:
    """Find it, or have apt-get install it for root. None: there is none."""
    if not find() and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(("apt-get", "update", "--quiet"), check=False, stdout=subprocess.DEVNULL)
        subprocess.run(APT, check=False, stdout=subprocess.DEVNULL)
    return find()


if __name__ == "__main__":
    if not install():
        print(f"Chromium is not installed: tests of the console take yours ({', '.join(NAMES)}), or are skipped")
