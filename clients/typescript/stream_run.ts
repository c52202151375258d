// Follows a run from any event to its end, across cut connections, rotated streams and restarts of
// the server. Generated clients stop at the first clean end of a stream; this comes back with its
// cursor until the run itself has ended. Copy it; it needs nothing but `fetch` (Node 20, browsers).
//
//   for await (const event of streamRun<RunEvent>({ baseUrl: "http://127.0.0.1:8080", runId })) …

export interface StreamRunOptions {
  baseUrl: string;
  runId: string;
  apiKey?: string;
  /** The id (`seq`) of the last event you have; the first one you get is the next. */
  after?: string | number;
  signal?: AbortSignal;
  /** Failed attempts in a row, without a single event in between, before it gives up. */
  maxFailures?: number;
}

/** The server said no, and would say so again. */
export class StreamRefused extends Error {
  constructor(readonly status: number, readonly body: string) {
    super(`the server answered ${status}: ${body.slice(0, 500)}`);
  }
}

/** The server sends a comment every 15 s; after three missed ones the connection is dead. */
const SILENCE_MS = 45_000;

/** Every event of the run in order, each once; also `stream.gap`, but not `stream.end`. */
export async function* streamRun<E extends { type: string } = { type: string; seq?: number }>(
  options: StreamRunOptions,
): AsyncGenerator<E, void, undefined> {
  const url = `${options.baseUrl.replace(/\/+$/, "")}/v1/runs/${encodeURIComponent(options.runId)}/events`;
  let cursor = options.after === undefined ? "" : String(options.after);
  let retryMs = 1_000;
  for (let failures = 0; ; failures++) {
    options.signal?.throwIfAborted();
    if (failures > (options.maxFailures ?? 30)) throw new Error(`no event of ${options.runId} after ${failures} attempts`);
    let waitMs = retryMs;
    const silence = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, silence.signal]) : silence.signal;
    let timer = setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      const headers: Record<string, string> = { accept: "text/event-stream" };
      if (cursor) headers["last-event-id"] = cursor;
      if (options.apiKey) headers["authorization"] = `Bearer ${options.apiKey}`;
      const response = await fetch(url, { headers, signal });
      if (response.status === 204) return; // ended, and nothing after the cursor
      if (response.status === 408 || response.status === 429 || response.status >= 500) {
        waitMs = Math.max(waitMs, Number(response.headers.get("retry-after") ?? 0) * 1_000 || 0);
      } else if (response.status !== 200 || !response.body) {
        throw new StreamRefused(response.status, await response.text());
      } else {
        const reader = response.body.getReader();
        const decoder = new TextDecoder();
        let text = "", id: string | undefined, data: string[] = [];
        for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
          clearTimeout(timer);
          timer = setTimeout(() => silence.abort(), SILENCE_MS);
          const lines = (text + decoder.decode(chunk.value, { stream: true })).split("\n");
          text = lines.pop() ?? "";
          for (const line of lines.map((l) => l.replace(/\r$/, ""))) {
            const [, field, value] = /^(\w*): ?(.*)$/su.exec(line) ?? [];
            if (field === "id") id = value;
            else if (field === "retry") waitMs = retryMs = Number(value) || retryMs;
            else if (field === "data") data.push(value ?? "");
            else if (line === "" && data.length > 0) {
              const event = JSON.parse(data.join("\n")) as E & { reason?: string };
              data = [];
              if (event.type === "stream.end" && event.reason === "run_ended") return;
              if (id !== undefined) cursor = id; // only an event that came whole moves the cursor
              failures = 0;
              if (event.type !== "stream.end") yield event;
            }
          }
        }
      }
    } catch (error) {
      if (options.signal?.aborted || error instanceof StreamRefused || error instanceof SyntaxError) throw error;
    } finally {
      clearTimeout(timer);
      silence.abort(); // also when the reader of this stream has had enough
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}
