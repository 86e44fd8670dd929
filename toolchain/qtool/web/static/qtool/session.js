// One sequence of tokens in progress: its KV cache, and forward passes that extend it.
//
// Keys and values are the graph's own outputs, fed back as they are. With WebGPU they stay in its memory.

const CHUNK = 128; // tokens of a prompt per run: activations grow with it, and between two runs one can cancel

export class Session {
  #ort;
  #inference;
  #cache; // manifest.kv_cache
  #pairs; // names of each cached tensor: [input, output]
  #past = new Map(); // input -> tensor of shape (1, heads, capacity, head_dim); its first tokens are in use
  #ids = [];

  /**
   * @param {object} ort onnxruntime-web
   * @param {object} inference the opened graph
   * @param {object} manifest
   */
  constructor(ort, inference, manifest) {
    this.#ort = ort;
    this.#inference = inference;
    this.#cache = manifest.kv_cache;
    this.#pairs = cacheNames(manifest);
    this.clear();
  }

  /** Ids of the tokens whose keys and values are held. */
  get ids() {
    return this.#ids;
  }

  /** Forgets everything. */
  clear() {
    const { num_key_value_heads: heads, head_dim: size } = this.#cache;
    for (const [past] of this.#pairs) {
      this.#replace(past, new this.#ort.Tensor("float32", new Float32Array(), [1, heads, 0, size]));
    }
    this.#ids = [];
  }

  /**
   * Keeps what is held of the start of a prompt, and forgets the rest. At least one token is left to be read.
   *
   * @param {number[]} prompt
   * @returns {number} how many tokens of it are held
   */
  keepPrefix(prompt) {
    const most = Math.min(prompt.length - 1, this.#ids.length);
    let length = 0;
    while (length < most && prompt[length] === this.#ids[length]) length++;
    // The tensors stay as they are: the attention mask tells the graph how much of them counts.
    this.#ids = this.#ids.slice(0, length);
    return length;
  }

  /**
   * Reads tokens, in chunks.
   *
   * @param {number[]} ids at least one
   * @param {AbortSignal} [signal]
   * @returns {Promise<Float32Array>} the logits behind the last one
   */
  async read(ids, signal) {
    let logits;
    for (let start = 0; start < ids.length; start += CHUNK) {
      await nextTask(); // lets a message come in that cancels
      signal?.throwIfAborted();
      logits = await this.#run(ids.slice(start, start + CHUNK));
    }
    return logits;
  }

  async #run(ids) {
    const total = this.#ids.length + ids.length;
    const { Tensor } = this.#ort;
    const results = await this.#inference.run({
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
      ...Object.fromEntries(this.#past),
    });
    for (const [past, present] of this.#pairs) this.#replace(past, results[present]);
    this.#ids = [...this.#ids, ...ids];
    return results.logits.data;
  }

  #replace(past, tensor) {
    const old = this.#past.get(past);
    if (old?.location === "gpu-buffer") old.dispose();
    this.#past.set(past, tensor);
  }
}

/** Returns the names of every cached tensor, as [input, output]. */
export function cacheNames({ graph, kv_cache: cache }) {
  const patterns = [
    [graph.past_key, graph.present_key],
    [graph.past_value, graph.present_value],
  ];
  return Array.from({ length: cache.layers }, (_, layer) =>
    patterns.map((pair) => pair.map((name) => name.replace("%d", layer))),
  ).flat();
}

/** Resolves when what waits in the event queue has had its turn; quicker than a timer. */
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
