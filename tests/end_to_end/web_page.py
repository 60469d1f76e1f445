"""A web server with one page, whose script fetches parts at once and reports what it got.

Standard output gets a line of JSON for each request: its path and its Range header, if any; and the report.
"""

from __future__ import annotations

import json
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PARTS = 4
PART_BYTES = 3_000_000

# FNV-1a, 32 bits: what a script computes fast without a secure context.
PAGE = """<!doctype html><title>parts</title><script>
async function part(number) {
  const reader = (await fetch(`/part/${number}`)).body.getReader();
  let sum = 0x811c9dc5, bytes = 0;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return {bytes, sum: sum >>> 0};
    bytes += value.length;
    for (const byte of value) sum = Math.imul(sum ^ byte, 0x01000193);
  }
}
Promise.all([...Array(%d).keys()].map(part)).then(parts => parts, error => String(error))
  .then(result => fetch("/report", {method: "POST", body: JSON.stringify(result)}));
</script>"""


def part(number: int) -> bytes:
    return random.Random(number).randbytes(PART_BYTES)


def checksum(data: bytes) -> int:
    """FNV-1a of 32 bits."""
    total = 0x811C9DC5
    for byte in data:
        total = (total ^ byte) * 0x01000193 & 0xFFFFFFFF
    return total


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say(path=self.path, range=self.headers["Range"])
        if self.path == "/":
            self._answer((PAGE % PARTS).encode())
        elif self.path.startswith("/part/"):
            self._answer(part(int(self.path.rpartition("/")[2])))
        else:
            self._answer(b"", 404)

    def do_POST(self) -> None:
        self._say(path=self.path, report=json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def _say(self, **what: object) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if self.path == "/" else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
