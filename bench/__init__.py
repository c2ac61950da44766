"""The benchmark: `python -m bench`, or `make bench`.

Each file in `cases` measures one thing, and compares it with a peer or a limit. `harness` runs the sides of a case in
turns, each in a separate process; `side` is the program of such a process. All sides send to the server `receiver`.
"""
