// The other side of `client.js`: a model in a Web Worker.

import { loadModel } from "./qtool-web.js";

let model = null;
const cancels = new Map(); // request -> AbortController

self.onmessage = async ({ data }) => {
  if (data.type === "cancel") {
    cancels.get(data.request)?.abort();
    return;
  }
  const reply = (type, content = {}) => self.postMessage({ request: data.request, type, ...content });
  try {
    if (data.type === "load") await load(data, reply);
    else await chat(data, reply);
  } catch (error) {
    const hint = error.hint ?? "";
    reply("error", { message: error.message ?? String(error), hint });
  }
};

async function load({ folder, provider }, reply) {
  const onProgress = ({ loaded, total }) => reply("progress", { loaded, total });
  model = await loadModel(folder, { provider, onProgress });
  const { manifest, threads, context, defaults, thinks } = model;
  reply("done", { result: { manifest, provider: model.provider, threads, context, defaults, thinks } });
}

async function chat({ request, messages, options }, reply) {
  const controller = new AbortController();
  cancels.set(request, controller);
  try {
    const answer = model.chat(messages, { ...options, signal: controller.signal });
    for await (const event of answer) reply("event", { event, stats: answer.stats });
    reply("done", { result: answer.stats });
  } finally {
    cancels.delete(request);
  }
}
