// `clients/typescript/stream_run.ts` gets every event once, whatever happens to its connections.
import assert from "node:assert/strict";
import { StreamRefused, streamRun } from "./stream_run.js";

type Event = { type: string; seq: number; content?: string };
const baseUrl = process.argv[2] ?? "";

async function all(runId: string, after?: number, url = baseUrl, maxFailures = 30): Promise<Event[]> {
  const events: Event[] = [];
  const options = { baseUrl: url, runId, maxFailures };
  for await (const event of streamRun<Event>(after === undefined ? options : { ...options, after })) events.push(event);
  return events;
}

const events = await all("run_1");
assert.deepEqual(events.map((e) => e.seq), Array.from({ length: 12 }, (_, i) => i + 1));
for (const event of events.slice(0, -1)) assert.equal(event.content, `a\u2028é😀 ${event.seq}`);
const seen: unknown = await (await fetch(`${baseUrl}/seen`)).json();
assert.deepEqual(seen, [null, "4", "7", "7"]);

assert.deepEqual((await all("run_1", 9)).map((e) => e.seq), [10, 11, 12]);
assert.deepEqual(await all("run_over"), []);
await assert.rejects(all("run_gone"), (e) => e instanceof StreamRefused && e.status === 404);
await assert.rejects(all("run_1", undefined, "http://127.0.0.1:1", 0), /no event/);

const stop = new AbortController();
stop.abort();
const stopped = streamRun({ baseUrl, runId: "run_1", signal: stop.signal });
await assert.rejects(stopped.next(), { name: "AbortError" });
