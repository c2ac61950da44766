"""A simulated service on the network. It never answers requests for legendary places."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LEGENDS = {"/Atlantis", "/Avalon"}


@contextmanager
def weather_service() -> Iterator[str]:
    """Serve in threads, and yield the URL."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in LEGENDS:
                closing.wait()
                return
            weather = b"sunny"
            self.send_response(200)
            self.send_header("Content-Length", str(len(weather)))
            self.end_headers()
            self.wfile.write(weather)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            closing.set()
            server.shutdown()
