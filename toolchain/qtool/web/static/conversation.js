// The conversation on the page: what was said, and how it is shown. Reasoning is folded away.

export class Conversation {
  #place;
  #messages = [];
  #turn = null; // the answer in progress

  /** @param {HTMLElement} place where to show it; emptied first */
  constructor(place) {
    this.#place = place;
    place.replaceChildren();
  }

  /**
   * Adds a question, and the place for its answer.
   *
   * @param {string} question
   * @param {string} system the system message; empty for none
   * @returns {{role: string, content: string}[]} what to ask the model
   */
  ask(question, system) {
    const asked = make("article", "user");
    asked.append(make("p", "text", question));
    const answered = make("article", "assistant");
    answered.ariaLabel = "Answer";
    this.#place.append(asked, answered);
    this.#turn = { question, answer: "", asked, answered, started: performance.now() };
    this.#showEnd();
    const opening = system ? [{ role: "system", content: system }] : [];
    return [...opening, ...this.#messages, { role: "user", content: question }];
  }

  /** Shows a piece of the answer. */
  add({ kind, text }) {
    const turn = this.#turn;
    if (kind === "reasoning") {
      turn.reasoning ??= addReasoning(turn.answered);
      turn.reasoning.text.append(text);
    } else {
      this.#endReasoning();
      turn.text ??= turn.answered.appendChild(make("p", "text"));
      turn.text.append(text);
      turn.answer += text;
    }
    this.#showEnd();
  }

  /** Ends the answer, and says what it took. */
  finish(stats) {
    this.#endReasoning();
    const { question, answer, answered } = this.#turn;
    this.#messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
    answered.append(make("p", "figures", describe(stats)));
    this.#turn = null;
    this.#showEnd();
  }

  /** Removes a question that could not be answered, and returns it. */
  takeBack() {
    const { question, asked, answered } = this.#turn;
    asked.remove();
    answered.remove();
    this.#turn = null;
    return question;
  }

  #endReasoning() {
    const { reasoning, started } = this.#turn;
    if (!reasoning || reasoning.ended) return;
    reasoning.ended = true;
    reasoning.summary.textContent = `Thought for ${((performance.now() - started) / 1000).toFixed(1)} s`;
  }

  #showEnd() {
    this.#place.lastElementChild.scrollIntoView({ block: "end" });
  }
}

function addReasoning(parent) {
  const details = make("details", "reasoning");
  const summary = details.appendChild(make("summary", "", "Thinking…"));
  const text = details.appendChild(make("p", ""));
  parent.append(details);
  return { summary, text, ended: false };
}

const REASONS = { length: "reached the most tokens", context: "the context is full", cancelled: "stopped" };

function describe(stats) {
  const parts = [`${stats.answerTokens} tokens`];
  if (stats.decodeRate) parts.push(`${stats.decodeRate.toFixed(1)} tokens/s`);
  if (stats.firstTokenSeconds) parts.push(`first after ${stats.firstTokenSeconds.toFixed(2)} s`);
  if (REASONS[stats.stopReason]) parts.push(REASONS[stats.stopReason]);
  return parts.join(" · ");
}

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
