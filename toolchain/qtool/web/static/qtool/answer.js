// What a chat answer is made of: reasoning and text, told apart while it comes in.

const OPEN = "<think>";
const CLOSE = "</think>";

/**
 * Sorts the text of an answer into reasoning and answer. How the text is cut into pieces makes no difference.
 *
 * Reasoning is what stands between `<think>`, if the text starts with it, and `</think>`. Newlines at both ends
 * of it, and those between it and the answer, belong to neither.
 */
export class AnswerParser {
  #held = "";
  #state;
  #atStart = true; // newlines here are left out

  /** @param {boolean} opened the prompt ended with `<think>`, so that the text starts with reasoning */
  constructor(opened) {
    this.#state = opened ? "reasoning" : "start";
  }

  /**
   * Returns what a piece of text completes.
   *
   * @param {string} text
   * @param {boolean} [final] nothing follows
   * @returns {{kind: "reasoning" | "answer", text: string}[]}
   */
  push(text, final = false) {
    this.#held += text;
    const events = [];
    if (this.#state === "start") this.#start(final);
    if (this.#state === "reasoning") this.#reason(final, events);
    if (this.#state === "answer") this.#answer(events);
    return events;
  }

  #start(final) {
    const text = this.#held.trimStart();
    if (text.startsWith(OPEN)) {
      this.#held = text.slice(OPEN.length);
      this.#state = "reasoning";
    } else if (final || !OPEN.startsWith(text)) {
      this.#state = "answer";
      this.#atStart = false;
    }
  }

  #reason(final, events) {
    if (this.#atStart) this.#held = this.#held.replace(/^\n+/, "");
    const close = this.#held.indexOf(CLOSE);
    const end = close >= 0 ? close : this.#held.length - (final ? 0 : possibleStart(this.#held, CLOSE));
    const text = this.#held.slice(0, end).replace(/\n+$/, "");
    if (text) {
      events.push({ kind: "reasoning", text });
      this.#atStart = false;
    }
    if (close >= 0) {
      this.#held = this.#held.slice(close + CLOSE.length);
      this.#state = "answer";
      this.#atStart = true;
    } else {
      this.#held = final ? "" : this.#held.slice(text.length);
    }
  }

  #answer(events) {
    const text = this.#atStart ? this.#held.replace(/^\n+/, "") : this.#held;
    this.#held = "";
    if (text) {
      events.push({ kind: "answer", text });
      this.#atStart = false;
    }
  }
}

/** Returns whether a rendered prompt ends within reasoning, as some templates leave it. */
export function isOpened(prompt) {
  return prompt.trimEnd().endsWith(OPEN);
}

/** Length of the longest end of `text` that may be the start of `tag`. */
function possibleStart(text, tag) {
  for (let length = Math.min(tag.length - 1, text.length); length > 0; length--) {
    if (tag.startsWith(text.slice(-length))) return length;
  }
  return 0;
}
