"""A ticket server on loopback that answers as a test wants."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from plumbing.http import Client

TICKET = {"ticket": "milton_080", "provider": "milton", "fence": 80, "lifetime_s": 60, "url": "http://milton:8081"}
Answer = tuple[int, dict[str, str], object]


class TicketServer:
    """A real server on loopback; `answer` decides, `seen` remembers, `changed` tells who waits."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.sent: list[tuple[Mapping[str, str], bytes]] = []
        self.changed = threading.Condition()
        self.answer: Callable[[str, int], Answer] = lambda _line, _count: (200, {}, TICKET)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                line = f"{self.command} {self.path}"
                with owner.changed:
                    owner.seen.append(line)
                    owner.sent.append((dict(self.headers), sent))
                    count = owner.seen.count(line)
                    owner.changed.notify_all()
                status, headers, value = owner.answer(line, count)
                body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = serve

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.client = Client(f"http://127.0.0.1:{self.http.server_port}", timeout_s=5)

    def wait_for(self, line: str, count: int = 1) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.seen.count(line) >= count, timeout=20), self.seen

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
