// Files of an artifact over HTTP: bounded, with progress, and checked against the manifest.

import { QtoolError } from "./errors.js";

/**
 * Downloads a file of known size and SHA-256.
 *
 * @param {URL} url
 * @param {{size: number, sha256: string}} expected
 * @param {{onBytes?: (count: number) => void, signal?: AbortSignal}} [options] `onBytes` is told of each piece
 * @returns {Promise<Uint8Array>}
 * @throws {QtoolError} the file is missing, too short, too long or altered
 */
export async function download(url, expected, { onBytes = () => {}, signal } = {}) {
  const name = fileName(url);
  const bytes = new Uint8Array(expected.size);
  let length = 0;
  for await (const piece of pieces(url, signal)) {
    if (length + piece.length > bytes.length) {
      throw damaged(name, `it is longer than the ${expected.size} bytes that the manifest says`);
    }
    bytes.set(piece, length);
    length += piece.length;
    onBytes(piece.length);
  }
  if (length < expected.size) {
    throw damaged(name, `the download ended after ${length} of ${expected.size} bytes`);
  }
  const found = await sha256(bytes);
  if (found !== expected.sha256) {
    throw damaged(
      name,
      `its SHA-256 is ${found.slice(0, 12)}…, the manifest says ${expected.sha256.slice(0, 12)}…`,
    );
  }
  return bytes;
}

/**
 * Downloads a text file whose size is not known.
 *
 * @param {URL} url
 * @param {number} most bytes that it may have
 * @param {AbortSignal} [signal]
 * @returns {Promise<string>}
 * @throws {QtoolError} the file is missing, too long or not UTF-8
 */
export async function downloadText(url, most, signal) {
  const parts = [];
  let length = 0;
  for await (const piece of pieces(url, signal)) {
    length += piece.length;
    if (length > most) throw damaged(fileName(url), `it has more than ${most} bytes`);
    parts.push(piece);
  }
  return decodeText(new Uint8Array(await new Blob(parts).arrayBuffer()), fileName(url));
}

/** Returns the text of UTF-8 bytes, or throws a QtoolError that names the file. */
export function decodeText(bytes, name) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw damaged(name, "it is not UTF-8 text");
  }
}

/** Returns the SHA-256 of bytes as hexadecimal digits. */
export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new QtoolError(
      "this page cannot check the files it loads: the browser does that on secure pages only",
      "Serve the folder over https, or open it as http://localhost.",
    );
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Yields the body of a response, piece by piece. */
async function* pieces(url, signal) {
  const name = fileName(url);
  let response;
  try {
    response = await fetch(url, { signal });
  } catch (error) {
    throw interrupted(name, error, signal);
  }
  if (!response.ok) {
    throw new QtoolError(
      `${name} cannot be loaded: the server answered ${response.status} ${response.statusText}`.trim(),
      "Copy the whole folder that `qtool package` wrote to the server.",
    );
  }
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw interrupted(name, error, signal);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function interrupted(name, error, signal) {
  if (signal?.aborted) return signal.reason;
  return new QtoolError(
    `${name} cannot be loaded: ${error.message}`,
    "Check the connection, and that the server is running; then load again.",
  );
}

function damaged(name, reason) {
  return new QtoolError(
    `${name} is damaged: ${reason}`,
    "Load again; if it stays, package the artifact again.",
  );
}

function fileName(url) {
  return decodeURIComponent(url.pathname.split("/").pop());
}
