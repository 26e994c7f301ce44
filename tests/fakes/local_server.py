"""A server on this machine that answers while a `with` block lasts."""

from collections.abc import Callable
from http.server import ThreadingHTTPServer
from threading import Thread
from typing import Any


class QuietServer(ThreadingHTTPServer):
    "Says nothing when a client hangs up."

    def handle_error(self, *_: object) -> None:
        "Keep the tests' output clean."


class LocalServer:
    "Answers on 127.0.0.1 while it is open."

    def make_handler(self) -> Callable[..., Any]:
        "Return what answers a request, for `http.server`."
        raise NotImplementedError

    @property
    def address(self) -> str:
        "Scheme, host and port, without a path."
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Any:
        self.server = QuietServer(("127.0.0.1", 0), self.make_handler())
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
