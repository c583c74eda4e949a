"""Optuna Dashboard on a run's study: read-only, on 127.0.0.1 only.

The dashboard has no authentication and takes writes and deletes from any origin, so it is wrapped: only GET and HEAD
with a Host header of this machine pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from budgetopt.errors import InputError
from budgetopt.search.folder import RunFolder
from budgetopt.search.storage import opened, readable
from budgetopt.search.study import load

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
HOST = "127.0.0.1"


def read_only(app: App, port: int) -> App:
    """WSGI middleware: GET and HEAD with a known Host pass, all else is refused before the app sees it."""
    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refused = ""
        if environ.get("HTTP_HOST") not in hosts:
            refused = "403 Forbidden"  # DNS rebinding: a foreign name that points here
        elif environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            refused = "405 Method Not Allowed"
        if refused:
            start_response(refused, [("Content-Type", "text/plain"), ("Allow", "GET, HEAD")])
            return [b"this dashboard is read-only\n"]
        return app(environ, start_response)

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def server(folder: RunFolder, port: int) -> WSGIServer:
    """A server on 127.0.0.1, ready for `serve_forever()`; port 0 takes a free one. The run may be going on."""
    import optuna
    import optuna_dashboard

    place = folder.study
    load(place)  # a clear error where there is no study
    folder.artifacts.mkdir(exist_ok=True)
    artifacts = optuna.artifacts.FileSystemArtifactStore(str(folder.artifacts))
    app = optuna_dashboard.wsgi(opened(readable(place)), artifact_store=artifacts)
    try:
        made = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise InputError(f"cannot listen on {HOST}:{port}: {error.strerror}; choose another --port") from None
    made.set_app(read_only(app, made.server_port))
    return made
