// The page: loads the artifact in model/, and talks with it. An example of how to use `qtool/client.js`.

import { neededFiles, readManifest } from "./qtool/artifact.js";
import { loadInWorker } from "./qtool/client.js";
import { Conversation } from "./conversation.js";
import { fillDefaults, readOptions, readSystem } from "./options.js";

const FOLDER = new URL("model/", document.baseURI);
const provider = new URLSearchParams(location.search).get("provider") ?? "auto";
const element = (id) => document.getElementById(id);

let model;
let conversation;
let cancel = null; // while an answer is in progress

/** Shows what is on the server, before anything large is loaded. */
async function introduce() {
  const manifest = await readManifest(FOLDER);
  const bytes = neededFiles(manifest).reduce((sum, file) => sum + file.size, 0);
  document.title = element("title").textContent = manifest.name;
  element("load").textContent = `Load the model (${megabytes(bytes)})`;
  element("load").disabled = false;
}

async function load() {
  element("load").hidden = true;
  element("download").hidden = false;
  try {
    model = await loadInWorker(FOLDER, { provider, onProgress: showProgress });
  } finally {
    element("load").hidden = false;
    element("download").hidden = true;
  }
  element("loader").hidden = true;
  element("composer").hidden = false;
  element("facts").textContent = describe(model);
  fillDefaults(model);
  restart();
}

function showProgress({ loaded, total }) {
  element("progress").value = loaded / total;
  element("progress-text").textContent =
    loaded < total ? `${megabytes(loaded)} of ${megabytes(total)}` : "Preparing the model…";
}

function describe({ manifest, provider, threads }) {
  const place =
    provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
  const kind = `${manifest.model.architecture}, ${manifest.target.weights.bits}-bit`;
  return `${kind}, in this browser (${place}). What you write stays here.`;
}

function restart() {
  conversation = new Conversation(element("conversation"));
  element("status").textContent = "";
  element("prompt").focus();
}

async function send() {
  const options = readOptions();
  const request = conversation.ask(element("prompt").value.trim(), readSystem());
  element("prompt").value = "";
  const controller = new AbortController();
  cancel = () => controller.abort();
  showBusy(true);
  const answer = model.chat(request, { ...options, signal: controller.signal });
  try {
    for (;;) {
      const { done, value } = await answer.next();
      if (done) {
        conversation.finish(value);
        break;
      }
      conversation.add(value);
      element("status").textContent = value.stats.decodeRate
        ? `${value.stats.decodeRate.toFixed(1)} tokens/s`
        : "";
    }
  } catch (error) {
    element("prompt").value = conversation.takeBack();
    throw error;
  } finally {
    cancel = null;
    showBusy(false);
  }
}

function showBusy(busy) {
  element("send").hidden = busy;
  element("stop").hidden = !busy;
  element("new").disabled = busy;
  element("conversation").ariaBusy = String(busy);
  if (!busy) element("prompt").focus();
}

/** Runs what the user asked for, and shows what goes wrong. */
async function attempt(action) {
  element("error").hidden = true;
  try {
    await action();
  } catch (error) {
    element("error-message").textContent = error.message;
    element("error-hint").textContent = error.hint ?? "";
    element("error").hidden = false;
    element("error").scrollIntoView({ block: "nearest" });
  }
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`;
}

element("load").onclick = () => attempt(load);
element("stop").onclick = () => cancel?.();
element("new").onclick = () => attempt(restart);
element("composer").onsubmit = (event) => {
  event.preventDefault();
  if (!cancel && element("prompt").value.trim()) attempt(send);
};
element("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("composer").requestSubmit();
  }
};
attempt(introduce);
