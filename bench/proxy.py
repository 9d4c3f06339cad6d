#!/usr/bin/python3
"""A TCP proxy that makes a place on this machine as far away as one with a given round trip: what netem would do, where the kernel has none.

    proxy.py PORT TARGET-PORT SECONDS COUNTS

Each direction is late by half of the round trip, whatever the amount.  A client's connect() returns at once, here, so the first bytes of a
connection wait the round trip more that the three-way handshake would have taken.  Each connection that says something is a byte more in COUNTS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: float, earliest: float, opened: int = -1) -> None:
    """Bytes arrive `late` seconds after they came, or after the moment `earliest`, where they came before."""
    clock = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            moment, data = await queue.get()
            if moment > clock.time():
                await asyncio.sleep(moment - clock.time())
            if not data:
                writer.close()
                return
            writer.write(data)

    delivery = asyncio.create_task(deliver())
    data = b"-"
    while data:
        try:
            data = await reader.read(65536)
        except OSError:
            data = b""
        if data and opened >= 0:
            os.write(opened, b".")
            opened = -1
        queue.put_nowait((max(clock.time(), earliest) + late, data))
    with contextlib.suppress(OSError):
        await delivery


async def main() -> None:
    port, target, trip = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    counts = os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin = asyncio.get_running_loop().time()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, far_writer, trip / 2, begin + trip, counts), carry(far_reader, writer, trip / 2, 0.0))

    server = await asyncio.start_server(connected, "127.0.0.1", port, backlog=1000)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
