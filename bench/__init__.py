"""The benchmark: `python -m bench`, or `make bench`.

Each file in `cases` measures one thing, here and beside it: at a peer, or at a limit. `harness` runs the sides of a
case in turns, each in a process of its own; `side` is what runs in there. `receiver` is the server that all send to.
"""
