"""Run the code of docs/testing.md, and the tests of its example, with pytest.

    python tests/support/testing_page.py

It needs only what the extra ``pytest`` installs, and runs in a folder outside the checkout, so that the installed
package is tested.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PYTEST = [sys.executable, "-W", "error", "-m", "pytest", "-q", "--strict-markers", "--strict-config"]


def write_blocks(page: Path, folder: Path) -> list[str]:
    """Write each block of a page, except included files, to a file of its own. Return their languages."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, (language, code) in enumerate(blocks, 1):
        name = {"python": f"test_block_{number}.py", "ini": "pytest.ini"}[language]
        (folder / name).write_text(code, encoding="utf-8")
    return [language for language, _ in blocks]


def main() -> int:
    """Return pytest's worst exit code."""
    where = [sys.executable, "-c", "import trio_spanbatch; print(trio_spanbatch.__file__)"]
    with tempfile.TemporaryDirectory() as name:
        page, example = Path(name, "page"), Path(name, "travel_desk")
        page.mkdir()
        languages = write_blocks(DOCS / "testing.md", page)
        shutil.copytree(DOCS / "examples" / "travel_desk", example)
        print(f"{languages.count('python')} blocks and the travel desk, with", flush=True)
        subprocess.run(where, cwd=page, check=True)
        return max(
            subprocess.run([*PYTEST, *sys.argv[1:]], cwd=folder, check=False).returncode for folder in (page, example)
        )


if __name__ == "__main__":
    sys.exit(main())
