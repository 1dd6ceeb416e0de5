"""How the server reads requests; what is none is answered as all that is wrong is."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledger.http.middleware import PLAIN
from ledger.http.problems import UNREADABLE, respond


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 whose answer to what cannot be read as a request is a problem, too."""

    def send_400_response(self, msg: str) -> None:
        """Answer with a problem, and end the connection: nobody knows where a request begins."""
        answer = respond(UNREADABLE, "", msg, headers={"Connection": "close"})
        headers = [*answer.raw_headers, *PLAIN, *self.server_state.default_headers]
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(each) for each in headers), b"", b""]
        self.transport.write(b"\r\n".join(lines) + bytes(answer.body))
        self.transport.close()
