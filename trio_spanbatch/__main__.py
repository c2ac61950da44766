"""``python -m trio_spanbatch`` is the command ``trio-spanbatch``."""

from __future__ import annotations

from .cli import main

main()
