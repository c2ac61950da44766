"""``python stays.py FOLDER own|new``: run forever, with a child that also does, in the same session or a new one.

Each makes a file in ``FOLDER`` whose name is the process's id.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def main(folder: str, session: str) -> None:
    if session != "none":
        subprocess.Popen([sys.executable, __file__, folder, "none"], start_new_session=session == "new")
    Path(folder, str(os.getpid())).touch()
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
