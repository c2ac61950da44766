"""An OTLP receiver to be stopped and killed: python -m tests.processes.server PORT FILE ANSWERS.

It appends a line to FILE for each request that it accepts, before it answers. After ANSWERS answers it still accepts
and reports requests, but does not answer.
"""

from __future__ import annotations

import os
import sys

import trio

from trio_spanbatch.testing import OTLPReceiver

from .collector import LOCATION_HEADER, Collector, Record


async def main(port: int, path: str, answers: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(record: Record) -> None:
        os.write(file, record.to_line())
        if not collector.answers:
            os.write(1, b"accepted without an answer\n")

    collector = Collector(write)
    collector.answers = answers
    async with OTLPReceiver(
        port=port, location_header=LOCATION_HEADER, answers=collector.answer, keep=False
    ) as receiver:
        os.write(1, f"listening on {receiver.url}\n".encode())
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
