// The generation loop: token ids in, token ids out.

import { QtoolError } from "./errors.js";

/**
 * What a generation has done so far.
 *
 * @typedef {object} Stats
 * @property {number} promptTokens
 * @property {number} cachedTokens how many of them were known, so that only the others were read
 * @property {number} answerTokens
 * @property {number} firstTokenSeconds from the request to the first token
 * @property {number} decodeSeconds for all tokens after the first
 * @property {number} decodeRate tokens per second, after the first; 0 before the second
 * @property {"eos" | "length" | "context" | "cancelled" | null} stopReason null while it runs
 */

/** @returns {Stats} */
export function newStats() {
  return {
    promptTokens: 0,
    cachedTokens: 0,
    answerTokens: 0,
    firstTokenSeconds: 0,
    decodeSeconds: 0,
    decodeRate: 0,
    stopReason: null,
  };
}

/**
 * Reads the prompt, then yields one token id after the other until something ends the answer.
 *
 * @param {import("./session.js").Session} session
 * @param {number[]} prompt
 * @param {import("./sampling.js").Sampler} sampler
 * @param {Stats} stats filled in as the generation goes on
 * @param {{maxTokens: number, endIds: number[], context: number, signal?: AbortSignal}} limits
 * @throws {QtoolError} the prompt does not fit
 */
export async function* generate(session, prompt, sampler, stats, { maxTokens, endIds, context, signal }) {
  if (prompt.length >= context) {
    throw new QtoolError(
      `the conversation has ${prompt.length} tokens; the context holds ${context}, the answer included`,
      "Start a new conversation, or shorten the message.",
    );
  }
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  stats.promptTokens = prompt.length;
  stats.cachedTokens = session.keepPrefix(prompt);
  try {
    let token = sampler.choose(await session.read(prompt.slice(stats.cachedTokens), signal));
    stats.firstTokenSeconds = seconds();
    for (;;) {
      if (endIds.includes(token)) return end("eos");
      stats.answerTokens++;
      yield token;
      if (stats.answerTokens === maxTokens) return end("length");
      if (session.ids.length + 1 >= context) return end("context");
      token = sampler.choose(await session.read([token], signal));
      stats.decodeSeconds = seconds() - stats.firstTokenSeconds;
      stats.decodeRate = stats.answerTokens / stats.decodeSeconds;
    }
  } catch (error) {
    if (!signal?.aborted) throw error;
    end("cancelled");
  } finally {
    stats.stopReason ??= "cancelled"; // the caller has left the loop
  }

  function end(reason) {
    stats.stopReason = reason;
  }
}
