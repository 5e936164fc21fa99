"""`report --serve`: a local server of the page of a scale, which it updates while runs train."""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from wnrepro.errors import UserError
from wnrepro.records import read_bytes

HOST = "127.0.0.1"
SECONDS, REST = 5.0, 5  # between two checks of the files; at least this multiple of the time that the page took
LINKED = ("config.json", "metrics.csv")  # files of a run that the page links
SHOWN = ("*.json", "*.csv", "*.png", "*.gif")  # files of a run that the page shows


def state(results: Path, scale: str) -> str:
    """Return a hash of the state of the files that the page shows. It changes when one of them does."""
    runs = [(results / scale).glob(f"*/*/seed-*/{pattern}") for pattern in SHOWN]
    said = hashlib.sha256()
    for path in sorted(itertools.chain(*runs, (results / "bench").glob("*.json"))):
        try:
            about = path.stat()
        except OSError:  # deleted meanwhile
            continue
        said.update(f"{path} {about.st_mtime_ns} {about.st_size}\n".encode())
    return said.hexdigest()


class Server(ThreadingHTTPServer):
    """A server of the page that `make` returns for a version. It updates the page on a request if a file has changed.

    port: 0 for a free one. warn: called with the reason if an update fails; the last page remains. Raises UserError if
    the first page cannot be made, or the port is taken.
    """

    daemon_threads = True

    def __init__(
        self, results: Path, scale: str, make: Callable[[str], str], port: int = 0, warn: Callable[[str], None] = print
    ) -> None:
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(f"--port {port}: cannot be used ({error.strerror}); give another, or 0") from error
        self.results, self.scale, self.make, self.warn = results, scale, make, warn
        self.making, self.next, self.last_warning = threading.Lock(), 0.0, ""
        try:
            self.version = state(results, scale)
            self.page = make(self.version)
        except UserError:
            self.server_close()
            raise

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def renew(self) -> None:
        """Update the page if that is due and no other request does so. A failed update is tried again later."""
        started = time.monotonic()
        if started < self.next or not self.making.acquire(blocking=False):
            return
        try:
            version = state(self.results, self.scale)
            if version != self.version:
                self.page = self.make(version)  # contains its version, so that no browser misses a newer one
                self.version = version
        except Exception as error:  # perhaps a file is being replaced; the last page remains
            if str(error) != self.last_warning:
                self.last_warning = str(error)
                self.warn(self.last_warning)
        finally:
            self.next = time.monotonic() + max(SECONDS, REST * (time.monotonic() - started))
            self.making.release()

    def handle_error(self, *args: object) -> None:
        """Ignore errors: a browser may close the connection early."""

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, type and content of the page, its version, or a file of a run that the page links."""
        if path in ("/", "/version"):
            self.renew()
            return (200, "text/html", self.page.encode()) if path == "/" else (200, "text/plain", self.version.encode())
        run, _, name = path.lstrip("/").rpartition("/")
        if name in LINKED and f'href="./{run}/{name}"' in self.page:
            try:
                return 200, "text/plain", read_bytes(self.results / self.scale / unquote(run) / name)
            except (FileNotFoundError, UserError):
                pass
        return 404, "text/plain", b"There is no such page.\n"


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests that name this machine as host; any other host name may belong to a foreign site."""

    server: Server
    timeout = 30  # seconds

    def do_GET(self) -> None:
        """Answer a request, and let the browser cache nothing."""
        code, kind, content = 403, "text/plain", b"Ask for 127.0.0.1.\n"
        if self.headers.get("Host", "").partition(":")[0] in (HOST, "localhost"):
            code, kind, content = self.server.answer(quote(unquote(self.path.partition("?")[0])))
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Log nothing: the terminal is for messages to the user."""
