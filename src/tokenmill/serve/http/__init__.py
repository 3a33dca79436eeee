"""HTTP: one server process on one TextEngine. `run_server` is the blocking entry, `background` the one for a thread."""

from tokenmill.serve.http.app import build_app
from tokenmill.serve.http.options import CorsOptions, ServerOptions, TransportLimits
from tokenmill.serve.http.server import HttpServer, background, run_server
from tokenmill.serve.http.service import Job, Service

__all__ = [
    "CorsOptions", "HttpServer", "Job", "ServerOptions", "Service", "TransportLimits", "background", "build_app",
    "run_server",
]
