"""The generated client completes a run of the agent `demo`; poll, wait, log and stream agree about it."""

import os
import sys
import time

from stepwell_client import Client
from stepwell_client.api.events import list_run_log
from stepwell_client.api.runs import create_run, get_run
from stepwell_client.models import ApiError, CreateRunRequest, Run, RunCompletedEvent
from stream_run import stream_run

base_url = sys.argv[1]
client = Client(base_url=base_url, raise_on_unexpected_status=True, timeout=60.0)

body = CreateRunRequest.from_dict({"input": "Hello", "metadata": {"from": "python"}})
key = f"python-{os.getpid()}-{time.time_ns()}"
run = create_run.sync("demo", client=client, body=body, wait=30, idempotency_key=key)
assert isinstance(run, Run), run
assert run.status == "completed", run.status
assert run.agent_id == "demo"
assert run.to_dict()["metadata"] == {"from": "python"}
assert run.steps_completed >= 2 and run.usage.total_tokens > 0
answer = run.to_dict()["result"]["content"]
assert answer, "it has no answer"

polled = get_run.sync(run.run_id, client=client)
assert isinstance(polled, Run), polled
assert polled.to_dict() == run.to_dict()

streamed = list(stream_run(base_url, run.run_id))
assert [e["seq"] for e in streamed] == list(range(1, run.last_seq + 1))
types = {e["type"] for e in streamed}
assert types >= {"run.queued", "reasoning.delta", "tool_call.completed", "message.delta"}, types
assert [e["content"] for e in streamed if e["type"] == "message.completed"][-1] == answer
assert streamed[-1]["type"] == "run.completed"

page = list_run_log.sync(run.run_id, client=client, limit=100)
# The client turns times into datetimes, which have another spelling.
untimed = [{**e, "created_at": None} for e in streamed]
assert [{**e.to_dict(), "created_at": None} for e in page.data] == untimed[:100]
# The discriminator tells the kinds of events apart.
if len(streamed) <= 100:
    assert isinstance(page.data[-1], RunCompletedEvent), page.data[-1]

assert list(stream_run(base_url, run.run_id, after=run.last_seq - 3)) == streamed[-3:]

# An error is the documented object.
unknown = get_run.sync("run_00000000000070008000000000000000", client=client)
assert isinstance(unknown, ApiError), unknown
assert unknown.error == "not_found"
