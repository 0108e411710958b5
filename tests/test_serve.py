"""What listens on the loopback interface, and to whom it answers."""

import contextlib
import http.client
import threading
from collections.abc import Iterator

import pytest

from jaxdl import serve
from jaxdl.errors import UserError


@contextlib.contextmanager
def running(make: object) -> Iterator[int]:
    with serve.server(make, 0) as server:  # type: ignore[arg-type]
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str = "/", host: str | None = None,
        method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_page_is_made_each_time_it_is_asked_for() -> None:
    made = []

    def make() -> str:
        made.append(1)
        return f"<p>page {len(made)}</p>"

    with running(make) as port:
        assert ask(port)[:2] == (200, "<p>page 1</p>")
        status, text, headers = ask(port, host=f"localhost:{port}")
        assert (status, text) == (200, "<p>page 2</p>")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"


def test_nothing_else_is_served_and_to_nobody_else() -> None:
    made = []

    def make() -> str:
        made.append(1)
        return "secret"

    with running(make) as port:
        for path in ("/x", "/../etc/passwd", "/?a", "/report.html", "http://evil.test/"):
            assert ask(port, path)[0] == 404
        for host in ("evil.test", f"evil.test:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}",
                     f"127.0.0.1.evil.test:{port}"):
            status, text, _ = ask(port, host=host)
            assert status == 403 and "secret" not in text
        assert ask(port, method="POST")[0] == 501
        assert made == []


def test_an_error_is_shown_and_a_later_page_too() -> None:
    answers = iter([UserError("nothing is logged yet"), "later"])

    def make() -> str:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    with running(make) as port:
        assert ask(port)[:2] == (503, "error: nothing is logged yet\n")
        assert ask(port)[:2] == (200, "later")


def test_a_port_that_is_taken_is_told() -> None:
    with running(str) as port, pytest.raises(UserError, match=f"--port={port}: cannot be listened"):
        serve.server(str, port)
