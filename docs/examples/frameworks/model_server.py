"""A simulated model behind an OpenAI-compatible API: it asks for the weather in the city it was asked about."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def reply_to(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the model's next message: a call of the tool, then an answer with its result."""
    last = messages[-1]
    if last["role"] == "tool":
        return {"role": "assistant", "content": f"The weather is {last['content']}."}
    function = {"name": "weather", "arguments": json.dumps({"city": last["content"]})}
    return {"role": "assistant", "tool_calls": [{"id": "call-1", "type": "function", "function": function}]}


@contextmanager
def model_server() -> Iterator[str]:
    """Serve in threads, and yield the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = reply_to(request["messages"])
            reply = {
                "id": "reply-1",
                "object": "chat.completion",
                "created": 1_700_000_000,
                "model": request["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
                    }
                ],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
