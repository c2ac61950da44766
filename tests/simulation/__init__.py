"""The seeded simulation. ``plan.py``, ``server.py`` and ``run.py`` are the machine; its test needs no other support."""
