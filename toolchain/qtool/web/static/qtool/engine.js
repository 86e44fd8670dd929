// onnxruntime-web: which of its two builds runs here, and how a graph is opened with it.

import { QtoolError } from "./errors.js";

const LIBRARY = new URL("../lib/onnxruntime-web/", import.meta.url);
const BUILDS = {
  webgpu: { api: "ort.webgpu.js", binary: "ort-wasm-simd-threaded.asyncify" },
  wasm: { api: "ort.wasm.js", binary: "ort-wasm-simd-threaded" },
};
const MOST_THREADS = 8; // more gain nothing in token-by-token work

/**
 * Loads onnxruntime-web for what this browser has.
 *
 * @param {"auto" | "webgpu" | "wasm"} wanted "auto" takes WebGPU where there is a real GPU, else WebAssembly
 * @returns {Promise<{ort: object, provider: "webgpu" | "wasm", threads: number}>}
 * @throws {QtoolError} the browser does not have what is wanted
 */
export async function loadEngine(wanted = "auto") {
  if (!["auto", "webgpu", "wasm"].includes(wanted)) {
    throw new QtoolError(`the provider ${JSON.stringify(wanted)} is unknown; known: auto, webgpu, wasm`);
  }
  const provider = wanted === "wasm" ? "wasm" : await chooseProvider(wanted);
  const { api, binary } = BUILDS[provider];
  let ort;
  try {
    ort = await import(new URL(api, LIBRARY).href);
  } catch (error) {
    throw new QtoolError(
      `onnxruntime-web (${api}) cannot be loaded: ${error.message}`,
      "Copy the whole folder that `qtool package` wrote to the server.",
    );
  }
  const threads = threadCount();
  ort.env.wasm.wasmPaths = {
    mjs: new URL(`${binary}.js`, LIBRARY).href,
    wasm: new URL(`${binary}.wasm`, LIBRARY).href,
  };
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return { ort, provider, threads };
}

async function chooseProvider(wanted) {
  const adapter = await globalThis.navigator?.gpu?.requestAdapter().catch(() => null);
  if (wanted === "webgpu") {
    if (adapter) return "webgpu";
    throw new QtoolError(
      "this browser gives no WebGPU adapter",
      "Load with the provider `wasm`, or another browser.",
    );
  }
  const software = adapter?.info?.isFallbackAdapter; // slower than WebAssembly
  return adapter && !software ? "webgpu" : "wasm";
}

/** Threads need shared memory, which browsers give to cross-origin isolated pages only. */
function threadCount() {
  return globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency ?? 1, MOST_THREADS) : 1;
}

/**
 * Opens the graph of an artifact.
 *
 * @param {{ort: object, provider: string}} engine
 * @param {{graph: Uint8Array, weights: {path: string, data: Uint8Array}[]}} files
 * @param {string[]} onDevice names of outputs that stay in the GPU's memory, where there is one
 * @returns {Promise<object>} an InferenceSession
 * @throws {QtoolError} onnxruntime-web cannot open it
 */
export async function openGraph({ ort, provider }, files, onDevice) {
  try {
    return await ort.InferenceSession.create(files.graph, {
      executionProviders: [provider],
      externalData: files.weights,
      enableMemPattern: false, // a pattern is kept for every new input shape, and each token is one
      logSeverityLevel: 3,
      ...(provider === "webgpu" && {
        preferredOutputLocation: Object.fromEntries(onDevice.map((name) => [name, "gpu-buffer"])),
      }),
    });
  } catch (error) {
    throw new QtoolError(
      `onnxruntime-web ${ort.env.versions.web} cannot open the model on ${provider}: ${error.message ?? error}`,
      provider === "webgpu"
        ? "Load with the provider `wasm`; the page does with `?provider=wasm` in its address."
        : "Close other pages to free memory, or use a smaller model.",
    );
  }
}
