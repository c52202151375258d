"""`clients/python/stream_run.py` gets every event once, whatever happens to its connections."""

import sys

import httpx
from stream_run import StreamRefused, stream_run

base_url = sys.argv[1]

events = list(stream_run(base_url, "run_1"))
assert [e["seq"] for e in events] == list(range(1, 13)), events
assert all(e["content"] == f"a\u2028é😀 {e['seq']}" for e in events[:-1]), events
seen = httpx.get(f"{base_url}/seen").json()
assert seen == [None, "4", "7", "7"], seen

assert [e["seq"] for e in stream_run(base_url, "run_1", after=9)] == [10, 11, 12]
assert list(stream_run(base_url, "run_over")) == []
try:
    list(stream_run(base_url, "run_gone"))
    raise SystemExit("an unknown run was not refused")
except StreamRefused as refused:
    assert refused.status == 404
try:
    list(stream_run("http://127.0.0.1:1", "run_1", max_failures=0))
    raise SystemExit("a server that is not there was waited for")
except TimeoutError:
    pass
