"""An S3 endpoint that costs next to nothing, so that a benchmark measures its clients.

Bodies that arrive are dropped by the kernel (`MSG_TRUNC`: nothing is copied to user space), bodies
that leave come from a memory file by `sendfile`. One thread per connection, no parsing beyond what
the clients under test need: PUT of objects and parts, the calls around a multipart upload, HEAD,
GET with and without a range. Nothing is stored: every object that is read is the same one.

    python s3_sink.py SIZE_BYTES        prints its port on the first line, ends with its stdin
"""

import mmap
import os
import random
import re
import socket
import sys
import threading

BLOCK = 2**20
NOWHERE = mmap.mmap(-1, 2**28)
"""Where dropped bytes would go; never touched, so it takes no memory."""
_ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CREATED = (
    '<?xml version="1.0" encoding="UTF-8"?><InitiateMultipartUploadResult>'
    "<Bucket>bench</Bucket><Key>key</Key><UploadId>upload</UploadId>"
    "</InitiateMultipartUploadResult>"
)
_COMPLETED = (
    '<?xml version="1.0" encoding="UTF-8"?><CompleteMultipartUploadResult>'
    f"<Bucket>bench</Bucket><Key>key</Key><ETag>{_ETAG}</ETag></CompleteMultipartUploadResult>"
)


def content(size: int) -> bytes:
    """The one object: a block that does not compress, again and again."""
    block = random.Random(0).randbytes(BLOCK)
    return (block * -(-size // BLOCK))[:size]


class Sink:
    """The server; `serve` returns when stdin ends."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.file = os.memfd_create("object")
        view = memoryview(content(size))
        while view:
            view = view[os.write(self.file, view) :]
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def serve(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()
        print(self.listener.getsockname()[1], flush=True)
        sys.stdin.read()

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        scratch = bytearray(2**16)
        with connection:
            rest = b""
            while True:
                while b"\r\n\r\n" not in rest:
                    count = connection.recv_into(scratch)
                    if not count:
                        return
                    rest += scratch[:count]
                head, _, rest = rest.partition(b"\r\n\r\n")
                length = _LENGTH.search(head)
                left = int(length[1]) if length else 0
                if left and b"100-continue" in head.lower():
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                left -= min(left, len(rest)) if left else 0
                rest = b""  # clients do not send the next request before they have the answer
                while left:
                    count = connection.recv_into(NOWHERE, min(left, len(NOWHERE)), socket.MSG_TRUNC)
                    if not count:
                        return
                    left -= count
                self._answer(connection, head)

    def _answer(self, connection: socket.socket, head: bytes) -> None:
        line = head.split(b"\r\n", 1)[0].decode()
        method, target, _ = line.split(" ", 2)
        if method == "POST":
            body = _CREATED if "uploads" in target.partition("?")[2] else _COMPLETED
            self._head(connection, 200, len(body), extra="Content-Type: application/xml\r\n")
            connection.sendall(body.encode())
        elif method in {"GET", "HEAD"}:
            self._object(connection, head, method == "GET")
        else:
            self._head(connection, 204 if method == "DELETE" else 200, 0)

    def _object(self, connection: socket.socket, head: bytes, with_body: bool) -> None:
        asked = _RANGE.search(head)
        start, stop = 0, self.size
        extra = "Content-Type: binary/octet-stream\r\nAccept-Ranges: bytes\r\n"
        if asked:
            start = int(asked[1])
            stop = min(self.size, int(asked[2]) + 1) if asked[2] else self.size
            extra += f"Content-Range: bytes {start}-{stop - 1}/{self.size}\r\n"
        self._head(connection, 206 if asked else 200, stop - start, extra=extra)
        while with_body and start < stop:
            start += os.sendfile(connection.fileno(), self.file, start, stop - start)

    def _head(
        self, connection: socket.socket, status: int, length: int, *, extra: str = ""
    ) -> None:
        connection.sendall(
            f"HTTP/1.1 {status} OK\r\nContent-Length: {length}\r\nETag: {_ETAG}\r\n"
            f"Last-Modified: Fri, 20 Nov 2026 12:00:00 GMT\r\n"
            f"x-amz-request-id: 1\r\n{extra}\r\n".encode()
        )


if __name__ == "__main__":
    Sink(int(sys.argv[1])).serve()
