"""An exporter for one server per region. A region whose server is down does not delay the others."""

from collections.abc import Mapping
from functools import partial

import trio

from trio_spanbatch import Delivered, ExportResult, RetryPolicy, Span, SpanBatch, SpanBatcher, SpanContext, TryLater


class RegionExporter:
    """A `SpanExporter` that sends a batch over TCP to the server of its region: ``eu`` for ``eu/orders``."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports

    def endpoint_of(self, location: str) -> str:
        """Return the region of a location. Its locations share a server, and so its outages."""
        return location.partition("/")[0]

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Send ``batch``, and wait for the answer."""
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", self._ports[self.endpoint_of(batch.location)])
        except OSError as error:
            # Nothing was sent, so this is about the server and not about the location.
            return TryLater(str(error), endpoint=True)
        try:
            async with stream:
                await stream.send_all(batch.to_request())
                await stream.send_eof()
                answer = await stream.receive_some()
        except trio.BrokenResourceError as error:
            # The server may have received it.
            return TryLater(str(error), ambiguous=True)
        return Delivered() if answer == b"stored" else TryLater("the server did not answer", ambiguous=True)

    async def aclose(self) -> None:
        """Do nothing, as no connection stays open."""
        await trio.lowlevel.checkpoint()


async def store(stream: trio.SocketStream) -> None:
    """Serve a request: this server only says that it has stored the spans."""
    async for _ in stream:
        pass
    await stream.send_all(b"stored")


async def main() -> None:
    """Send a span to a server that is up, and one to a server that is down."""
    async with trio.open_nursery() as nursery:
        (eu,) = await nursery.start(partial(trio.serve_tcp, store, 0, host="127.0.0.1"))
        (us,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        ports = {"eu": eu.socket.getsockname()[1], "us": us.socket.getsockname()[1]}
        await us.aclose()
        async with SpanBatcher(RegionExporter(ports), retry=RetryPolicy(initial=0.1), shutdown_timeout=1) as batcher:
            for location in ("eu/orders", "us/orders"):
                await batcher.add_span(location, Span("order", SpanContext(1, 1), start_time=1, end_time=2))
            with trio.move_on_after(1):
                await batcher.flush()
            for region, endpoint in batcher.statistics().endpoints.items():
                print(f"{region} is {'up' if endpoint.is_up else 'down'}")
        print(f"delivered: {batcher.statistics().delivered}")
        print(f"handed back: {batcher.undelivered[0].reason}")
        nursery.cancel_scope.cancel()


trio.run(main)
