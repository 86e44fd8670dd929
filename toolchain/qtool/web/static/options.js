// The form with the options of an answer.

const element = (id) => document.getElementById(id);
const NUMBERS = {
  temperature: "temperature",
  "top-k": "topK",
  "top-p": "topP",
  "max-tokens": "maxTokens",
  seed: "seed",
};

/** Shows the model's own values. */
export function fillDefaults({ defaults, context, thinks }) {
  for (const [id, name] of Object.entries(NUMBERS)) {
    if (defaults[name] !== undefined) element(id).value = defaults[name] ?? "";
  }
  element("max-tokens").max = context;
  element("thinking-field").hidden = !thinks;
}

/** Returns what was set, for `WorkerModel.chat`; what is empty is left to the model. */
export function readOptions() {
  const options = {};
  for (const [id, name] of Object.entries(NUMBERS)) {
    if (element(id).value !== "") options[name] = element(id).valueAsNumber;
  }
  const thinking = element("thinking").value;
  return thinking ? { ...options, enableThinking: thinking === "on" } : options;
}

/** Returns the system message; empty for none. */
export function readSystem() {
  return element("system").value.trim();
}
