// Loads an artifact from a server and answers conversations. Runs in a Web Worker, on a page, or in Node.
//
//   const model = await loadModel("model/", { onProgress: ({ loaded, total }) => … });
//   const answer = model.chat([{ role: "user", content: "Hello" }]);
//   for await (const { kind, text } of answer) …      // kind: "reasoning" or "answer"
//   answer.stats.decodeRate                           // tokens per second
//
// On a page, use `client.js`: it does the same in a worker, so that the page stays responsive.

import { AnswerParser, isOpened } from "./answer.js";
import { downloadArtifact, readManifest } from "./artifact.js";
import { ChatTemplate } from "./chat.js";
import { loadEngine, openGraph } from "./engine.js";
import { QtoolError } from "./errors.js";
import { generate, newStats } from "./generate.js";
import { GREEDY, Sampler, samplingDefaults } from "./sampling.js";
import { Session, cacheNames } from "./session.js";
import { Tokenizer } from "./tokenizer.js";

export { QtoolError };

/**
 * Loads the artifact in a folder of a server.
 *
 * @param {string | URL} folder where manifest.json is; relative to the page or worker
 * @param {object} [options]
 * @param {(progress: {loaded: number, total: number}) => void} [options.onProgress] is told bytes
 * @param {"auto" | "webgpu" | "wasm"} [options.provider]
 * @param {AbortSignal} [options.signal] ends the downloads
 * @returns {Promise<Model>}
 * @throws {QtoolError} a file is missing or damaged, or this browser cannot run the artifact
 */
export async function loadModel(folder, { onProgress, provider = "auto", signal } = {}) {
  const base = new URL(`${folder}`.replace(/\/?$/, "/"), globalThis.location?.href);
  const manifest = await readManifest(base, signal);
  const engine = await loadEngine(provider);
  const files = await downloadArtifact(base, manifest, { onProgress, signal });
  const tokenizer = new Tokenizer(files.tokenizer);
  const template = files.chatTemplate && new ChatTemplate(files.chatTemplate, files.tokenizerConfig);
  const outputs = cacheNames(manifest).map(([, present]) => present);
  const inference = await openGraph(engine, files, outputs);
  return new Model({ manifest, engine, tokenizer, template, inference });
}

/** A loaded artifact. It answers one request at a time, and remembers the last one's keys and values. */
export class Model {
  #template;
  #inference;
  #session;
  #busy = false;

  constructor({ manifest, engine, tokenizer, template, inference }) {
    this.manifest = manifest;
    this.tokenizer = tokenizer;
    this.provider = engine.provider;
    this.threads = engine.threads;
    this.context = manifest.context;
    this.defaults = samplingDefaults(manifest);
    this.thinks = Boolean(template?.thinks);
    this.#template = template;
    this.#inference = inference;
    this.#session = new Session(engine.ort, inference, manifest);
  }

  /**
   * Answers a conversation. Options that are left out are the model's own.
   *
   * @param {{role: string, content: string}[]} messages
   * @param {object} [options]
   * @param {number} [options.temperature] 0 takes the most likely token
   * @param {number} [options.topK] draw among the k most likely; 0 for all
   * @param {number} [options.topP] draw among the fewest tokens whose probabilities reach this sum
   * @param {number} [options.repetitionPenalty] 1 for none
   * @param {number | null} [options.seed] repeats a draw (not the one that the Python runtime makes of it)
   * @param {number} [options.maxTokens]
   * @param {boolean} [options.enableThinking] for models that can think first
   * @param {AbortSignal} [options.signal] cancels
   * @returns {Answer} an async iterable of `{kind, text}`
   * @throws {QtoolError} an option is invalid, or there is no chat template
   */
  chat(messages, { enableThinking, ...options } = {}) {
    if (!this.#template) {
      throw new QtoolError(
        "the artifact has no chat template: it is a base model",
        "Use generate() instead.",
      );
    }
    const { ids, text } = this.#template.encode(this.tokenizer, messages, { enableThinking });
    return this.#answer(ids, { ...this.defaults, ...options }, new AnswerParser(isOpened(text)));
  }

  /**
   * Continues a text or token ids. Greedy unless asked otherwise; options as for `chat`.
   *
   * @param {string | number[]} prompt
   * @returns {Answer} an async iterable of `{kind: "answer", text}`
   */
  generate(prompt, options = {}) {
    const ids = typeof prompt === "string" ? this.tokenizer.encode(prompt) : prompt;
    return this.#answer(ids, { ...GREEDY, ...options }, null);
  }

  /** Frees the weights. */
  async release() {
    await this.#inference.release();
  }

  #answer(prompt, { maxTokens, signal, ...sampling }, parser) {
    if (prompt.length === 0) throw new QtoolError("the prompt is empty", "Ask something.");
    const limit = maxTokens ?? this.context;
    if (!Number.isInteger(limit) || limit < 1) {
      throw new QtoolError(`maxTokens is ${JSON.stringify(maxTokens)}; valid: an integer from 1`);
    }
    const sampler = new Sampler(sampling, prompt);
    const stats = newStats();
    const endIds = this.manifest.generation.eos_token_ids;
    const limits = { maxTokens: limit, endIds, context: this.context, signal };
    const tokenIds = [];
    const run = () => {
      const tokens = generate(this.#session, prompt, sampler, stats, limits);
      return events(tokens, tokenIds, this.tokenizer.newDecoder(), parser);
    };
    return new Answer(stats, tokenIds, () => this.#alone(run));
  }

  /** Runs a generation if none is in progress. */
  async *#alone(run) {
    if (this.#busy) throw new QtoolError("the model is answering already", "Wait for it, or cancel it.");
    this.#busy = true;
    try {
      yield* run();
    } catch (error) {
      this.#session.clear(); // what a failed run has left is unknown
      throw error;
    } finally {
      this.#busy = false;
    }
  }
}

/** An answer as it comes, to be iterated once. `stats` says what it took, `tokenIds` are its tokens so far. */
export class Answer {
  #run;

  constructor(stats, tokenIds, run) {
    this.stats = stats;
    this.tokenIds = tokenIds;
    this.#run = run;
  }

  [Symbol.asyncIterator]() {
    return this.#run();
  }
}

/** Collects token ids, and turns them into pieces of text, sorted by the parser if there is one. */
async function* events(tokens, tokenIds, decoder, parser) {
  const sort = (text, final) => (parser ? parser.push(text, final) : text ? [{ kind: "answer", text }] : []);
  for await (const id of tokens) {
    tokenIds.push(id);
    yield* sort(decoder.push(id), false);
  }
  yield* sort(decoder.finish(), true);
}
