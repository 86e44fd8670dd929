// Files of artifacts that the browser keeps, so that the next visit does not download them again. Where it keeps
// nothing (no space, a private window, Node), files are downloaded each time.

import { sha256 } from "./download.js";

const NAME = "qtool-artifacts";
const DIGEST = "sha256";

/**
 * Returns a file that was stored, or null. What is stored is checked like what is downloaded.
 *
 * @param {URL} url where the file was downloaded from
 * @param {{sha256: string}} expected
 * @returns {Promise<Uint8Array | null>}
 */
export async function readStored(url, expected) {
  const cache = await openCache();
  const response = await cache?.match(key(url, expected));
  if (!response) return null;
  const bytes = new Uint8Array(await response.arrayBuffer());
  return (await sha256(bytes)) === expected.sha256 ? bytes : null;
}

/** Stores a file, in place of what was stored of the same address. */
export async function store(url, expected, bytes) {
  const cache = await openCache();
  if (!cache) return;
  for (const { url: stored } of await cache.keys()) {
    if (stored.startsWith(`${url.href}?${DIGEST}=`)) await cache.delete(stored);
  }
  await cache.put(key(url, expected), new Response(bytes)).catch(() => {}); // no space: downloaded next time
}

async function openCache() {
  return (await globalThis.caches?.open(NAME).catch(() => null)) ?? null;
}

function key(url, expected) {
  return `${url.href}?${DIGEST}=${expected.sha256}`;
}
