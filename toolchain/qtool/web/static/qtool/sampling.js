// Choosing the next token from a row of logits.

import { QtoolError } from "./errors.js";

const VALID = {
  temperature: [
    (value) => value === 0 || (value >= 0.001 && value <= 100),
    "0 (greedy), or from 0.001 to 100",
  ],
  topK: [(value) => Number.isInteger(value) && value >= 0, "0 (all), or a count"],
  topP: [(value) => value > 0 && value <= 1, "above 0, up to 1"],
  repetitionPenalty: [(value) => value > 0 && value <= 100, "above 0, up to 100"],
  seed: [
    (value) => value === null || (Number.isInteger(value) && value >= 0 && value < 2 ** 32),
    "none, or an integer from 0 to 2^32 - 1",
  ],
};

export const GREEDY = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, seed: null };

/** Returns the model's own way of sampling, from its manifest. */
export function samplingDefaults({ generation }) {
  return {
    temperature: generation.do_sample ? generation.temperature : 0,
    topK: generation.top_k,
    topP: generation.top_p,
    repetitionPenalty: generation.repetition_penalty,
    seed: null,
  };
}

/**
 * Chooses one token after the other, and remembers which have been used. The steps: repetition penalty,
 * temperature, top-k, top-p, draw. The first also applies where the most likely token is taken.
 */
export class Sampler {
  #options;
  #used;
  #random;

  /**
   * @param {{temperature: number, topK: number, topP: number, repetitionPenalty: number, seed: number | null}}
   *   options `temperature` 0 takes the most likely token, the lowest id among equals
   * @param {Iterable<number>} prompt ids that the repetition penalty counts as used
   * @throws {QtoolError} a value is out of its range
   */
  constructor(options, prompt) {
    for (const [name, [valid, range]] of Object.entries(VALID)) {
      const value = options[name];
      if (!(typeof value === "number" || value === null) || !valid(value)) {
        throw new QtoolError(`${name} is ${value}; valid: ${range}`);
      }
    }
    this.#options = options;
    this.#used = new Set(prompt);
    this.#random = randomNumbers(options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
  }

  /**
   * Returns the id of the next token, and counts it as used.
   *
   * @param {Float32Array} logits one for each token; changed where there is a repetition penalty
   * @throws {QtoolError} the logits hold NaN or infinity
   */
  choose(logits) {
    const { temperature, topK, topP, repetitionPenalty } = this.#options;
    if (repetitionPenalty !== 1) {
      for (const id of this.#used) logits[id] *= logits[id] > 0 ? 1 / repetitionPenalty : repetitionPenalty;
    }
    const best = argmax(logits);
    if (!Number.isFinite(logits[best])) {
      throw new QtoolError(
        `the model returned ${logits[best]} as the logit of token ${best}`,
        "Load the page again with `?provider=wasm`; if it stays, the artifact is broken.",
      );
    }
    const token =
      temperature === 0 || topK === 1
        ? best
        : draw(keepTopP(weigh(logits, logits[best], temperature, topK), topP), this.#random());
    this.#used.add(token);
    return token;
  }
}

/** Returns the index of the largest value, or of the first NaN. */
function argmax(values) {
  let best = 0;
  for (let index = 0; index < values.length; index++) {
    if (Number.isNaN(values[index])) return index;
    if (values[index] > values[best]) best = index;
  }
  return best;
}

/**
 * Returns the `topK` most likely tokens (0: all) as {id, weight}, in descending order where there is a top-k;
 * weights are relative to the most likely.
 */
function weigh(logits, largest, temperature, topK) {
  const candidates = [];
  for (let id = 0; id < logits.length; id++) {
    const full = topK > 0 && candidates.length === topK;
    if (full && logits[id] <= candidates.at(-1).logit) continue;
    const candidate = { id, logit: logits[id], weight: Math.exp((logits[id] - largest) / temperature) };
    if (full) candidates.pop();
    if (topK > 0) candidates.splice(placeFor(candidates, candidate.logit), 0, candidate);
    else candidates.push(candidate);
  }
  return candidates;
}

/** Returns where a logit belongs in a descending list: behind its equals. */
function placeFor(candidates, logit) {
  let low = 0;
  let high = candidates.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (candidates[middle].logit >= logit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Keeps the fewest candidates whose weights reach `topP` of the sum: the largest. */
function keepTopP(candidates, topP) {
  if (topP === 1) return candidates;
  const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
  // All weights under this together hold less than 1 - topP, so none of them can be needed.
  const least = ((1 - topP) * total) / candidates.length;
  const sorted = candidates
    .filter(({ weight }) => weight >= least)
    .sort((one, other) => other.weight - one.weight);
  let sum = 0;
  const end = sorted.findIndex(({ weight }) => (sum += weight) >= topP * total);
  return end < 0 ? sorted : sorted.slice(0, end + 1);
}

/** Returns the id of the candidate at which the running sum of weights passes `fraction` of their sum. */
function draw(candidates, fraction) {
  let left = fraction * candidates.reduce((sum, { weight }) => sum + weight, 0);
  for (const { id, weight } of candidates) {
    left -= weight;
    if (left < 0) return id;
  }
  return candidates.findLast(({ weight }) => weight > 0).id; // rounding hid it
}

/** Returns a generator of numbers from 0 to 1 (Weyl sequence with the finalizer of MurmurHash3, 32 bits). */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let bits = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
  };
}
