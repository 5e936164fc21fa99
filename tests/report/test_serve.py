"""`report --serve`: the page renews itself, and answers only what it should, to whom it should."""

import http.client
import os
import socket
import struct
from pathlib import Path

import pytest
from factories import make_run, running, train_on

from wnrepro.errors import UserError
from wnrepro.report import serve

pytestmark = pytest.mark.usefixtures("made_up_scale", "text_only")
METRICS = "cifar/wn_lr0.003/seed-1/metrics.csv"


def get(server: serve.Server, path: str, host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection(serve.HOST, server.server_address[1], timeout=60)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    assert response.headers["Cache-Control"] == "no-store" and response.headers["X-Content-Type-Options"] == "nosniff"
    return response.status, response.read().decode()


def test_page_is_rebuilt_after_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "SECONDS", 0.0)
    monkeypatch.setattr(serve, "REST", 0)
    make_run(tmp_path, status="running", logged=2)
    told: list[str] = []
    with running(tmp_path, told) as server:
        _, first = get(server, "/version")
        assert get(server, "/version") == (200, first) and f'data-live="{first}"' in get(server, "/")[1]
        train_on(tmp_path)
        _, second = get(server, "/version")
        assert second != first and "3 of 8" in get(server, "/")[1]
        with socket.create_connection(server.server_address) as client:  # leaves before it has read anything
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        (tmp_path / "malformed.csv").write_text("epoch\nx\n")
        os.replace(tmp_path / "malformed.csv", tmp_path / "short" / METRICS)
        while not told:  # as long as the page is made for the client that has left
            assert get(server, "/version?now") == (200, second)  # the page before it stays
        assert get(server, "/version") == (200, second)
        assert len(told) == 1 and "metrics.csv" in told[0]
    assert capsys.readouterr().err == ""


def test_it_answers_what_the_page_links_to_this_machine_alone(tmp_path: Path) -> None:
    make_run(tmp_path)
    with running(tmp_path, []) as server:
        code, text = get(server, f"/{METRICS}")
        assert code == 200 and text.startswith("epoch,seconds")
        for path in (
            "run.json",
            METRICS.replace("metrics.csv", "run.json"),
            "../short/report.html",
            "cifar/x/config.json",
        ):
            assert get(server, f"/{path}")[0] == 404
        hosts = ["evil.example:80", "127.0.0.1.evil.example", "127.0.0.1"]
        assert [get(server, "/", host)[0] for host in hosts] == [403, 403, 200]
        with pytest.raises(UserError, match="--port"):
            serve.Server(tmp_path, "short", str, server.server_address[1])


def test_a_first_page_that_cannot_be_made_ends_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "short")), running(tmp_path, []):
        pass
