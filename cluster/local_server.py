"""A web server for this machine alone: bound to 127.0.0.1, whatever is asked of it."""

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette

HOST = "127.0.0.1"


class LocalServer:
    """Serves an application on a port of this machine, 0 for any that is free."""

    def __init__(self, app: Starlette, port: int) -> None:
        """Raises ValueError when the port cannot be had."""
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be had ({error.strerror}): say port=0 for any that is free"
            ) from error
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

    @property
    def address(self) -> str:
        """Where it is."""
        host, port = self._socket.getsockname()
        return f"http://{host}:{port}"

    async def serve(self) -> None:
        """Serve until told to end."""
        with self._socket:
            await self._server.serve(sockets=[self._socket])

    def run(self) -> None:
        """Serve in a thread of its own until told to end."""
        asyncio.run(self.serve())

    def end(self) -> None:
        """Serve no longer; `serve` returns soon."""
        self._server.should_exit = True
