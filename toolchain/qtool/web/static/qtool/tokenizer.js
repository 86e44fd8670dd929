// Between text and token ids. The merges of byte-level BPE are the library's (lib/tokenizers.js); added tokens
// are found here, so that a caller decides which text may become a control token.

import { Tokenizer as Backend } from "../lib/tokenizers.js";
import { QtoolError } from "./errors.js";

export class Tokenizer {
  #backend;
  #added; // name of an added token -> id
  #special; // ids of control tokens, which have no text of their own
  #pattern; // finds added tokens, the longest first
  #tokens; // id -> token as the vocabulary writes it

  /**
   * @param {object} document the content of tokenizer.json
   * @throws {QtoolError} it is a tokenizer of another kind
   */
  constructor(document) {
    if (document.model?.type !== "BPE" || document.decoder?.type !== "ByteLevel") {
      throw new QtoolError(
        `tokenizer.json has a ${document.model?.type} model with a ${document.decoder?.type} decoder; only byte-level BPE is known`,
        "Build the artifact from a Qwen model.",
      );
    }
    const added = document.added_tokens ?? [];
    this.#backend = new Backend({ ...document, added_tokens: [] }, {});
    this.#added = new Map(added.map((token) => [token.content, token.id]));
    this.#special = new Set(added.filter((token) => token.special).map((token) => token.id));
    const names = [...this.#added.keys()].sort((one, other) => other.length - one.length);
    this.#pattern = names.length ? new RegExp(`(${names.map(escapeRegExp).join("|")})`) : null;
    this.#tokens = [];
    for (const [token, id] of Object.entries(document.model.vocab)) this.#tokens[id] = token;
    for (const [token, id] of this.#added) this.#tokens[id] = token;
  }

  /** Names of the control tokens, which have no text of their own. */
  get specialTokens() {
    return [...this.#added].filter(([, id]) => this.#special.has(id)).map(([name]) => name);
  }

  /**
   * Returns the token ids of a text without the character `mark`. Names of added tokens become those tokens,
   * except where a mark stands within one.
   *
   * @param {string} text
   * @param {string} [mark]
   * @returns {number[]}
   */
  encode(text, mark = "") {
    const parts = this.#pattern ? text.toWellFormed().split(this.#pattern) : [text.toWellFormed()];
    return parts.flatMap((part, index) =>
      index % 2 ? [this.#added.get(part)] : this.#encodePlain(mark ? part.replaceAll(mark, "") : part),
    );
  }

  #encodePlain(text) {
    return text ? this.#backend.encode(text, { add_special_tokens: false }).ids : [];
  }

  /** Returns the bytes that a token stands for: none for control tokens and for ids without a token. */
  tokenBytes(id) {
    const token = this.#tokens[id];
    if (token === undefined || this.#special.has(id)) return new Uint8Array();
    const bytes = Array.from(token, (character) => BYTE_OF_CHARACTER.get(character));
    return bytes.includes(undefined) ? new TextEncoder().encode(token) : Uint8Array.from(bytes);
  }

  /** Returns a decoder for one stream of ids, which keeps back the bytes of an unfinished character. */
  newDecoder() {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      push: (id) => utf8.decode(this.tokenBytes(id), { stream: true }),
      finish: () => utf8.decode(),
    };
  }
}

function escapeRegExp(text) {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}

/** GPT-2's table: byte-level vocabularies write each byte as one printable character. */
const BYTE_OF_CHARACTER = (() => {
  const printable = (byte) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  const table = new Map();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    table.set(String.fromCharCode(printable(byte) ? byte : next++), byte);
  }
  return table;
})();
