// The generated client completes a run of the agent `demo`; poll, wait, log and stream agree about it.
import assert from "node:assert/strict";
import { createClient } from "./generated/client/index.js";
import { createRun, getRun, listRunLog } from "./generated/index.js";
import type { Run, RunEvent } from "./generated/index.js";
import { streamRun } from "./stream_run.js";

const baseUrl = process.argv[2] ?? "";
const client = createClient({ baseUrl, throwOnError: true });

const { data: waited } = await createRun({
  client,
  path: { agent_id: "demo" },
  query: { wait: 30 },
  headers: { "Idempotency-Key": `typescript-${process.pid}-${Date.now()}` },
  body: { input: "Hello", metadata: { from: "typescript" } },
});
// 200 is the run or, for who asks for it, its stream.
assert.ok("status_url" in waited);
const run: Run = waited;
assert.equal(run.status, "completed");
assert.equal(run.agent_id, "demo");
assert.deepEqual(run.metadata, { from: "typescript" });
assert.ok(run.result?.content, "it has no answer");
assert.ok(run.steps_completed >= 2 && run.usage.total_tokens > 0);

const { data: polled } = await getRun({ client, path: { run_id: run.run_id } });
assert.deepEqual(polled, run);

const streamed: RunEvent[] = [];
for await (const event of streamRun<RunEvent>({ baseUrl, runId: run.run_id })) streamed.push(event);
assert.deepEqual(streamed.map((e) => e.seq), Array.from({ length: run.last_seq }, (_, i) => i + 1));
const types = new Set(streamed.map((e) => e.type));
for (const type of ["run.queued", "reasoning.delta", "tool_call.completed", "message.delta"] as const) {
  assert.ok(types.has(type), `there is no ${type}`);
}
const answer = streamed.flatMap((e) => (e.type === "message.completed" ? [e.content] : [])).at(-1);
assert.equal(answer, run.result.content);
// The discriminator tells the kinds of events apart.
const last = streamed.at(-1);
assert.ok(last?.type === "run.completed");
assert.equal(last.result?.content, run.result.content);

const { data: page } = await listRunLog({ client, path: { run_id: run.run_id }, query: { limit: 100 } });
assert.deepEqual(page.data, streamed.slice(0, 100));

const rest: RunEvent[] = [];
for await (const event of streamRun<RunEvent>({ baseUrl, runId: run.run_id, after: run.last_seq - 3 })) rest.push(event);
assert.deepEqual(rest, streamed.slice(-3));

// An error is the documented object.
const unknown = await getRun({ client, path: { run_id: "run_00000000000070008000000000000000" }, throwOnError: false });
assert.equal(unknown.response?.status, 404);
assert.equal(unknown.error?.error, "not_found");
