"""A file server for tests of pages, which can be slow, add headers, and answer otherwise than it should."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""With these headers, a browser gives a page shared memory, and so threads."""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(
        self,
        *arguments: object,
        headers: Mapping[str, str],
        instead: Mapping[str, bytes | None],
        pause: float,
        **named: object,
    ) -> None:
        self._headers_to_add = headers
        self._instead = instead
        self._pause = pause
        super().__init__(*arguments, **named)  # type: ignore[arg-type]

    def end_headers(self) -> None:
        for name, value in self._headers_to_add.items():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path not in self._instead:
            super().do_GET()
            return
        content = self._instead[path]
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content), 1 << 17):
            self.wfile.write(content[start : start + (1 << 17)])
            time.sleep(self._pause)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serve(
    folder: Path,
    *,
    headers: Mapping[str, str] | None = None,
    instead: Mapping[str, bytes | None] | None = None,
    pause: float = 0,
) -> Iterator[str]:
    """Serves a folder and gives its address, which ends with a slash.

    Args:
        folder: what to serve.
        headers: added to every response.
        instead: path -> what to answer instead of the file there; None for "not found".
        pause: seconds behind each 128 kB of those.
    """
    handler = partial(
        _Handler,
        directory=str(folder),
        headers=headers or {},
        instead={} if instead is None else instead,
        pause=pause,
    )
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
