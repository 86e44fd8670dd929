// From a conversation to the token ids of a prompt, so that no content can pass for a control token.
//
// A template joins control tokens and content to one text. Before rendering, a mark is put into the names of
// control tokens in all content; what then reads as a control token is the template's.

import { Template } from "../lib/jinja.js";
import { QtoolError } from "./errors.js";

const MAXIMUM_TEMPLATE_CHARACTERS = 1 << 20;
const FIRST_MARK = 0xe000; // characters for private use: one that the conversation does not use is the mark
const LAST_MARK = 0xf8ff;

export class ChatTemplate {
  #template;
  #variables;

  /**
   * @param {string} source the content of chat_template.jinja
   * @param {object} tokenizerConfig has the names of special tokens that templates may use
   * @throws {QtoolError} the template is too large or does not parse
   */
  constructor(source, tokenizerConfig) {
    if (source.length > MAXIMUM_TEMPLATE_CHARACTERS) {
      throw new QtoolError(`the chat template has ${source.length} characters`, "Build the artifact again.");
    }
    try {
      this.#template = new Template(source);
    } catch (error) {
      throw new QtoolError(`the chat template does not parse: ${error.message}`, "Build the artifact again.");
    }
    this.#variables = specialTokens(tokenizerConfig);
    this.thinks = source.includes("enable_thinking"); // whether it can be told to, or not to
  }

  /**
   * Returns the prompt for a conversation.
   *
   * @param {{role: string, content: string}[]} messages
   * @param {{enableThinking?: boolean}} [options] left out: as the template has it
   * @returns {string}
   * @throws {QtoolError} the template refuses the messages or fails
   */
  render(messages, { enableThinking } = {}) {
    const variables = { ...this.#variables, messages, tools: null, add_generation_prompt: true };
    if (enableThinking !== undefined) variables.enable_thinking = enableThinking;
    try {
      return this.#template.render(variables);
    } catch (error) {
      throw new QtoolError(`the chat template cannot render these messages: ${error.message}`);
    }
  }

  /**
   * Renders and encodes a conversation.
   *
   * @param {import("./tokenizer.js").Tokenizer} tokenizer
   * @param {{role: string, content: string}[]} messages
   * @param {{enableThinking?: boolean}} [options]
   * @returns {{ids: number[], text: string}} the prompt
   */
  encode(tokenizer, messages, options) {
    const mark = unusedMark(messages);
    const names = tokenizer.specialTokens;
    const marked = messages.map((message) =>
      Object.fromEntries(Object.entries(message).map(([key, value]) => [key, markText(value, names, mark)])),
    );
    const text = this.render(marked, options);
    return { ids: tokenizer.encode(text, mark), text: text.replaceAll(mark, "") };
  }
}

/** Puts the mark into every name, and into the start of one at the end, which more text could complete. */
function markText(text, names, mark) {
  if (typeof text !== "string") return text;
  for (const name of names) text = text.replaceAll(name, name[0] + mark + name.slice(1));
  const visible = text.trimEnd(); // templates strip content
  const longest = Math.max(0, ...names.map((name) => name.length - 1));
  for (let start = Math.max(0, visible.length - longest); start < visible.length; start++) {
    if (names.some((name) => name.startsWith(visible.slice(start)))) {
      return text.slice(0, start + 1) + mark + text.slice(start + 1);
    }
  }
  return text;
}

function unusedMark(messages) {
  const content = JSON.stringify(messages);
  for (let code = FIRST_MARK; code <= LAST_MARK; code++) {
    if (!content.includes(String.fromCharCode(code))) return String.fromCharCode(code);
  }
  throw new QtoolError("the messages use all private-use characters", "Leave one of them out.");
}

/** bos_token, eos_token and so on, for templates that name them. */
function specialTokens(config) {
  const tokens = Object.entries(config).filter(([name]) => name.endsWith("_token"));
  const contents = tokens.map(([name, value]) => [name, value?.content ?? value]);
  return Object.fromEntries(contents.filter(([, value]) => typeof value === "string"));
}
