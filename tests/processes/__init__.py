"""Child processes that tests start and send signals to; ``tests/support/processes.py`` has the helpers."""
