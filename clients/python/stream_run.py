"""Follows a run from any event to its end, across cut connections, rotated streams and restarts.

Generated clients stop at the first clean end of a stream; this comes back with its cursor until the
run itself has ended. Copy it; it needs httpx, which generated clients use too.

    for event in stream_run("http://127.0.0.1:8080", run_id):
        print(event["type"])
"""

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

# The server sends a comment every 15 s; after three missed ones the connection is dead.
SILENCE_SECONDS = 45.0


class StreamRefused(Exception):
    """The server said no, and would say so again."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the server answered {status}: {body[:500]}")
        self.status, self.body = status, body


def stream_run(
    base_url: str, run_id: str, *, api_key: str | None = None, after: int | str | None = None, max_failures: int = 30
) -> Iterator[dict[str, Any]]:
    """Yields every event of the run in order, each once; also `stream.gap`, but not `stream.end`.

    `after` is the id (`seq`) of the last event you have. It gives up after `max_failures` failed
    attempts in a row, without a single event in between.
    """
    url = f"{base_url.rstrip('/')}/v1/runs/{quote(run_id, safe='')}/events"
    cursor = "" if after is None else str(after)
    retry_seconds, failures = 1.0, 0
    timeout = httpx.Timeout(10.0, read=SILENCE_SECONDS)
    with httpx.Client(timeout=timeout) as client:
        while failures <= max_failures:
            wait_seconds = retry_seconds
            headers = {"accept": "text/event-stream"}
            if cursor:
                headers["last-event-id"] = cursor
            if api_key:
                headers["authorization"] = f"Bearer {api_key}"
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if response.status_code == 204:  # ended, and nothing after the cursor
                        return
                    if response.status_code in (408, 429) or response.status_code >= 500:
                        after_seconds = response.headers.get("retry-after", "")
                        wait_seconds = max(wait_seconds, float(after_seconds) if after_seconds.isdecimal() else 0.0)
                    elif response.status_code != 200:
                        raise StreamRefused(response.status_code, response.read().decode("utf-8", "replace"))
                    else:
                        event_id, data = None, []
                        for line in _lines(response):
                            field, _, value = line.partition(":")
                            value = value.removeprefix(" ")
                            if field == "id":
                                event_id = value
                            elif field == "retry" and value.isdecimal():
                                wait_seconds = retry_seconds = int(value) / 1000
                            elif field == "data":
                                data.append(value)
                            elif line == "" and data:
                                event, data = json.loads("\n".join(data)), []
                                if event["type"] == "stream.end" and event["reason"] == "run_ended":
                                    return
                                if event_id is not None:  # only an event that came whole moves the cursor
                                    cursor = event_id
                                failures = -1
                                if event["type"] != "stream.end":
                                    yield event
            except httpx.TransportError:
                pass
            failures += 1
            time.sleep(wait_seconds)
    raise TimeoutError(f"no event of {run_id} after {failures} attempts")


def _lines(response: httpx.Response) -> Iterator[str]:
    """Lines as SSE means them. httpx's own `iter_lines` also cuts at U+2028, which JSON may hold."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8")
