"""One page on the loopback interface, made anew each time it is asked for. Nothing else is.

Only this machine reaches 127.0.0.1; but a page from elsewhere, open in its browser, may do so under
a name that it lets point there (DNS rebinding). So a request has to name this very address in its
Host header.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jaxdl.display import console
from jaxdl.errors import RunError, UserError


def serve(make: Callable[[], str], port: int) -> None:
    """Serves the page until Ctrl-C.

    Args:
      make: the page; what it raises as UserError or RunError is shown in its place.
      port: 0 takes one that is free. A UserError says if it is taken.
    """
    with server(make, port) as running:
        console.print(f"http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            console.print("")


def server(make: Callable[[], str], port: int) -> ThreadingHTTPServer:
    """The server, not running yet."""
    making = threading.Lock()  # one at a time, however many windows are open

    class Handler(BaseHTTPRequestHandler):
        timeout = 20  # seconds; a connection that says nothing holds a thread no longer

        def do_GET(self) -> None:
            own = self.server.server_port  # type: ignore[attr-defined]
            if self.headers.get("Host") not in (f"127.0.0.1:{own}", f"localhost:{own}"):
                return self.send_error(403, "this address is not served under that name")
            if self.path != "/":
                return self.send_error(404)
            try:
                with making:
                    content, status = make().encode(errors="backslashreplace"), 200
            except (UserError, RunError) as error:
                content, status = f"error: {error}\n".encode(errors="backslashreplace"), 503
            self.send_response(status)
            kind = "html" if status == 200 else "plain"
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            if status != 200:
                self.send_header("Refresh", "5")  # There may be something later.
            for name, value in (("Cache-Control", "no-store"), ("X-Frame-Options", "DENY"),
                                ("X-Content-Type-Options", "nosniff"),
                                ("Cross-Origin-Resource-Policy", "same-origin")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # The window was closed.
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """The terminal stays quiet."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port={port}: cannot be listened on ({reason}).") from error
