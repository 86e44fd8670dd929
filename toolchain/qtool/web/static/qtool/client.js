// A model in a Web Worker, for use on a page:
//
//   const model = await loadInWorker("model/", { onProgress: ({ loaded, total }) => … });
//   for await (const { kind, text, stats } of model.chat(messages, { temperature: 0.7, signal })) …

import { QtoolError } from "./errors.js";

/**
 * Loads the artifact in a folder of the server, in a worker of its own.
 *
 * @param {string | URL} folder relative to the page
 * @param {{onProgress?: (progress: {loaded: number, total: number}) => void,
 *   provider?: "auto" | "webgpu" | "wasm"}} [options]
 * @returns {Promise<WorkerModel>}
 * @throws {QtoolError} see `loadModel`
 */
export async function loadInWorker(folder, { onProgress = () => {}, provider = "auto" } = {}) {
  const channel = new Channel(new Worker(new URL("worker.js", import.meta.url), { type: "module" }));
  const request = { type: "load", folder: new URL(folder, document.baseURI).href, provider };
  try {
    for await (const message of channel.ask(request)) {
      if (message.type === "progress") onProgress(message);
      if (message.type === "done") return new WorkerModel(channel, message.result);
    }
  } catch (error) {
    channel.close();
    throw error;
  }
}

/** A model that was loaded with `loadInWorker`. */
export class WorkerModel {
  #channel;

  /** `about` has what the worker's model has: manifest, provider, threads, context, defaults, thinks. */
  constructor(channel, about) {
    this.#channel = channel;
    Object.assign(this, about);
  }

  /**
   * Answers a conversation; see `Model.chat` for the options.
   *
   * @yields {{kind: "reasoning" | "answer", text: string, stats: import("./generate.js").Stats}} a piece of it
   * @returns {import("./generate.js").Stats} at the end
   */
  async *chat(messages, { signal, ...options } = {}) {
    for await (const message of this.#channel.ask({ type: "chat", messages, options }, signal)) {
      if (message.type === "event") yield { ...message.event, stats: message.stats };
      if (message.type === "done") return message.result;
    }
  }

  /** Ends the worker and frees its memory. */
  close() {
    this.#channel.close();
  }
}

/** Requests to a worker, each with any number of replies. */
class Channel {
  #worker;
  #requests = new Map(); // number -> what takes its replies
  #last = 0;

  constructor(worker) {
    this.#worker = worker;
    worker.onmessage = ({ data }) => this.#requests.get(data.request)?.(data);
    worker.onerror = (event) => {
      event.preventDefault();
      const message = `the model's worker failed: ${event.message ?? "its files cannot be loaded"}`;
      const hint = "Copy the whole folder that `qtool package` wrote to the server.";
      for (const take of this.#requests.values()) take({ type: "error", message, hint });
    };
  }

  /** Sends a request, and yields its replies up to "done". Throws what the worker reports as an error. */
  async *ask(content, signal) {
    const request = ++this.#last;
    const waiting = [];
    let wake = () => {};
    this.#requests.set(request, (message) => {
      waiting.push(message);
      wake();
    });
    const cancel = () => this.#worker.postMessage({ type: "cancel", request });
    signal?.addEventListener("abort", cancel);
    this.#worker.postMessage({ ...content, request });
    if (signal?.aborted) cancel();
    try {
      for (;;) {
        if (waiting.length === 0) await new Promise((resolve) => (wake = resolve));
        const message = waiting.shift();
        if (message.type === "error") throw new QtoolError(message.message, message.hint);
        yield message;
        if (message.type === "done") return;
      }
    } finally {
      signal?.removeEventListener("abort", cancel);
      this.#requests.delete(request);
      cancel(); // where the caller has left the loop half-way
    }
  }

  close() {
    this.#worker.terminate();
  }
}
