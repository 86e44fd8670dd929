// An artifact on a server: its manifest, and the files that running it needs.

import { decodeText, download, downloadText, sha256 } from "./download.js";
import { QtoolError } from "./errors.js";
import { readStored, store } from "./stored.js";

const FORMAT_VERSION = 1;
const MAXIMUM_MANIFEST_BYTES = 16 << 20;
const MAXIMUM_COUNT = 1 << 24;
const MAXIMUM_BYTES = 2 ** 32; // what 32-bit WebAssembly can address

const TOKENIZER = "tokenizer.json";
const TOKENIZER_CONFIG = "tokenizer_config.json";
const CHAT_TEMPLATE = "chat_template.jinja";

/**
 * Reads and checks the manifest of an artifact.
 *
 * @param {URL} folder of the artifact, ending with a slash
 * @param {AbortSignal} [signal]
 * @returns {Promise<object>} the document
 * @throws {QtoolError} it is missing, altered, of another version, or of an artifact for something else
 */
export async function readManifest(folder, signal) {
  const text = await downloadText(new URL("manifest.json", folder), MAXIMUM_MANIFEST_BYTES, signal);
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw new QtoolError(`manifest.json is no manifest: ${error.message}`, "Package the artifact again.");
  }
  if (manifest?.format_version !== FORMAT_VERSION) {
    throw new QtoolError(
      `manifest.json has the format version ${JSON.stringify(manifest?.format_version)}; this page reads ${FORMAT_VERSION}`,
      "Package the artifact with the qtool that built it.",
    );
  }
  await checkDigest(text, manifest);
  checkValues(manifest);
  checkUse(manifest);
  return manifest;
}

/** The document carries the SHA-256 of its own text without that one line. */
async function checkDigest(text, manifest) {
  const line = `  "manifest_sha256": ${JSON.stringify(manifest.manifest_sha256)},\n`;
  const found = await sha256(new TextEncoder().encode(text.replace(line, "")));
  if (found !== manifest.manifest_sha256) {
    throw new QtoolError(
      "manifest.json was changed after the build: its text does not have the SHA-256 it carries",
      "Package the artifact again; do not edit its files.",
    );
  }
}

/** Refuses what makes no sense: files outside the folder, and counts that memory would be taken for. */
function checkValues({ files, context, kv_cache: cache }) {
  const counts = {
    context,
    layers: cache.layers,
    heads: cache.num_key_value_heads,
    head_dim: cache.head_dim,
  };
  for (const [name, count] of Object.entries(counts)) {
    if (!Number.isInteger(count) || count < 1 || count > MAXIMUM_COUNT) {
      throw new QtoolError(`the manifest's ${name} is ${count}; valid: 1 to ${MAXIMUM_COUNT}`);
    }
  }
  for (const { path, size } of files) {
    if (!Number.isInteger(size) || size < 0 || path.startsWith("/") || /(^|\/)\.\.(\/|$)|[\\:]/.test(path)) {
      throw new QtoolError(
        `the manifest has a file ${JSON.stringify(path)} of ${size} bytes`,
        "Do not load this artifact.",
      );
    }
  }
}

function checkUse(manifest) {
  const { graph, kv_cache: cache } = manifest;
  if (graph.provider !== "webgpu" || cache.update !== "in_place") {
    throw new QtoolError(
      `the artifact ${manifest.name} was built for ${manifest.target.name}, which a browser cannot run`,
      "Build it with `--target web-int4`, and package that.",
    );
  }
  if (cache.dtype !== "float32") {
    throw new QtoolError(
      `the artifact has a ${cache.dtype} KV cache; this page runs float32`,
      "Build it with `--target web-int4`.",
    );
  }
  if (neededFiles(manifest).reduce((sum, file) => sum + file.size, 0) >= MAXIMUM_BYTES) {
    throw new QtoolError(
      "the artifact is larger than 4 GB, which a browser cannot load",
      "Use a smaller model.",
    );
  }
}

/** The files that running needs; what other runtimes need stays on the server. */
export function neededFiles(manifest) {
  const { file } = manifest.graph;
  const wanted = (path) =>
    path === file ||
    path.startsWith(`${file}.`) ||
    [TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE].includes(path);
  return manifest.files.filter((entry) => wanted(entry.path));
}

/**
 * Downloads what running an artifact needs, unless this browser has it from an earlier visit.
 *
 * @param {URL} folder of the artifact, ending with a slash
 * @param {object} manifest
 * @param {{onProgress?: (progress: {loaded: number, total: number}) => void, signal?: AbortSignal}} [options]
 *   `onProgress` is told bytes
 * @returns {Promise<{graph: Uint8Array, weights: {path: string, data: Uint8Array}[], tokenizer: object,
 *   tokenizerConfig: object, chatTemplate: string | null}>}
 * @throws {QtoolError} a file is missing or damaged
 */
export async function downloadArtifact(folder, manifest, { onProgress = () => {}, signal } = {}) {
  const entries = neededFiles(manifest);
  const total = entries.reduce((sum, entry) => sum + entry.size, 0);
  let loaded = 0;
  const onBytes = (count) => onProgress({ loaded: (loaded += count), total });
  onProgress({ loaded, total });

  const files = new Map();
  for (const entry of entries) {
    const url = new URL(entry.path.split("/").map(encodeURIComponent).join("/"), folder);
    files.set(
      entry.path,
      (await readStored(url, entry)) ?? (await downloadAndStore(url, entry, { onBytes, signal })),
    );
  }
  const { file } = manifest.graph;
  const take = (path) => {
    if (!files.has(path)) throw new QtoolError(`the artifact has no ${path}`, "Build it again.");
    return files.get(path);
  };
  const template = files.get(CHAT_TEMPLATE);
  return {
    graph: take(file),
    weights: [...files]
      .filter(([path]) => path.startsWith(`${file}.`))
      .map(([path, data]) => ({ path, data })),
    tokenizer: parse(take(TOKENIZER), TOKENIZER),
    tokenizerConfig: files.has(TOKENIZER_CONFIG) ? parse(take(TOKENIZER_CONFIG), TOKENIZER_CONFIG) : {},
    chatTemplate: template ? decodeText(template, CHAT_TEMPLATE) : null,
  };
}

async function downloadAndStore(url, entry, options) {
  const bytes = await download(url, entry, options);
  await store(url, entry, bytes);
  return bytes;
}

function parse(bytes, name) {
  try {
    return JSON.parse(decodeText(bytes, name));
  } catch (error) {
    throw new QtoolError(`${name} cannot be read: ${error.message}`, "Build the artifact again.");
  }
}
