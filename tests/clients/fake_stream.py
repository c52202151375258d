"""A server that breaks its streams in every way that one may break, to test the `stream_run` helpers.

It prints its port, and plays one log of 12 events over four connections:
  1. up to event 4, then it cuts the socket in the middle of event 5,
  2. from the cursor to event 7, then `stream.end` with reason `rotated`,
  3. 503,
  4. from the cursor to the end, then `stream.end` with reason `run_ended`.
`GET /seen` tells which cursors came. Run `run_gone` is unknown, `run_over` has nothing to say.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LAST = 12
seen: list[str | None] = []


def event(seq: int) -> dict:
    if seq == LAST:
        return {"type": "run.completed", "seq": seq, "run_id": "run_1", "status": "completed"}
    # A line separator is a line's end to some languages, but not to SSE; é and 😀 are cut in pieces.
    return {"type": "message.delta", "seq": seq, "run_id": "run_1", "content": f"a\u2028é😀 {seq}"}


def framed(seq: int) -> bytes:
    data = json.dumps(event(seq), ensure_ascii=False)
    return f"id: {seq}\nevent: {event(seq)['type']}\ndata: {data}\n\n".encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.answer(200, json.dumps(seen).encode(), "application/json")
        elif self.path == "/v1/runs/run_gone/events":
            self.answer(404, b'{"error":"not_found"}', "application/json")
        elif self.path == "/v1/runs/run_over/events":
            self.answer(204, b"", "text/event-stream")
        elif self.path == "/v1/runs/run_1/events":
            self.stream()
        else:
            self.answer(400, b"{}", "application/json")

    def answer(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        cursor = self.headers.get("last-event-id")
        seen.append(cursor)
        after = int(cursor or 0)
        if len(seen) == 3:
            self.send_response(503)
            self.send_header("retry-after", "0")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.chunk(b"retry: 10\n: hello\n\n")
        if len(seen) == 1:
            for seq in range(after + 1, 5):
                self.chunk(framed(seq))
            # With its data line complete, but without the empty line that ends an event.
            self.chunk(framed(5)[:-1])
            self.close_connection = True
            return
        rotated = len(seen) == 2
        for seq in range(after + 1, 8 if rotated else LAST + 1):
            for i in range(0, len(framed(seq)), 7):
                self.chunk(framed(seq)[i : i + 7])
        reason = "rotated" if rotated else "run_ended"
        end = {"type": "stream.end", "reason": reason, "last_seq": LAST}
        self.chunk(f"event: stream.end\ndata: {json.dumps(end)}\n\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
