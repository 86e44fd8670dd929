// Runs tasks with the modules of a packaged page, in Node. The page is the first argument; each line of
// standard input is a request {task, ...}, and is answered by a line: {result} or {failure}.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const load = (name) => import(`${pathToFileURL(process.argv[2])}/qtool/${name}.js`);
const { loadModel } = await load("qtool-web");

const models = new Map();

/** Loads the model at an address, once. */
async function loaded(address) {
  if (!models.has(address)) models.set(address, await loadModel(address));
  return models.get(address);
}

/** Runs a chat and collects what comes of it. */
async function collect(answer, onEvent = () => {}) {
  const collected = { reasoning: "", answer: "", events: 0 };
  for await (const { kind, text } of answer) {
    collected[kind] += text;
    collected.events++;
    onEvent(collected);
  }
  return { ...collected, stats: answer.stats, tokenIds: answer.tokenIds };
}

const tasks = {
  /** texts -> token ids, with a tokenizer.json */
  async encode({ tokenizer, texts }) {
    const { Tokenizer } = await load("tokenizer");
    const instance = new Tokenizer(JSON.parse(readFileSync(tokenizer, "utf8")));
    return texts.map((text) => instance.encode(text));
  },

  /** token ids -> text, as it comes in pieces */
  async decode({ tokenizer, ids }) {
    const { Tokenizer } = await load("tokenizer");
    const decoder = new Tokenizer(JSON.parse(readFileSync(tokenizer, "utf8"))).newDecoder();
    return [...ids.map((id) => decoder.push(id)), decoder.finish()];
  },

  /** conversations -> prompts, as text and ids */
  async render({ tokenizer, template, conversations }) {
    const { Tokenizer } = await load("tokenizer");
    const { ChatTemplate } = await load("chat");
    const instance = new Tokenizer(JSON.parse(readFileSync(tokenizer, "utf8")));
    const chat = new ChatTemplate(readFileSync(template, "utf8"), {});
    return conversations.map(({ messages, enableThinking }) =>
      chat.encode(instance, messages, { enableThinking }),
    );
  },

  /** pieces of text -> events */
  async parse({ cases }) {
    const { AnswerParser } = await load("answer");
    return cases.map(({ pieces, opened }) => {
      const parser = new AnswerParser(opened);
      return [...pieces.flatMap((piece) => parser.push(piece)), ...parser.push("", true)];
    });
  },

  /** logits and options -> how often each token is drawn */
  async sample({ logits, options, prompt, draws }) {
    const { Sampler } = await load("sampling");
    const sampler = new Sampler(options, prompt);
    const counts = Array(logits.length).fill(0);
    for (let draw = 0; draw < draws; draw++) counts[sampler.choose(Float32Array.from(logits))]++;
    return counts;
  },

  /** prompts -> logits behind the last token */
  async logits({ model: address, prompts }) {
    const { readManifest, downloadArtifact } = await load("artifact");
    const { loadEngine, openGraph } = await load("engine");
    const { Session } = await load("session");
    const folder = new URL(address);
    const manifest = await readManifest(folder);
    const engine = await loadEngine();
    const graph = await openGraph(engine, await downloadArtifact(folder, manifest), []);
    const results = [];
    for (const ids of prompts) {
      results.push(Array.from(await new Session(engine.ort, graph, manifest).read(ids)));
    }
    return results;
  },

  /** conversations -> answers, one after the other with one model */
  async chat({ model: address, conversations, options = {} }) {
    const model = await loaded(address);
    const answers = [];
    for (const messages of conversations) answers.push(await collect(model.chat(messages, options)));
    return { provider: model.provider, answers };
  },

  /** cancels an answer, and asks again */
  async cancel({ model: address, messages, after }) {
    const model = await loaded(address);
    const controller = new AbortController();
    const cancel = ({ events }) => events === after && controller.abort();
    const options = { temperature: 5, seed: 1 };
    const cancelled = await collect(model.chat(messages, { ...options, signal: controller.signal }), cancel);
    return { cancelled, next: await collect(model.chat(messages, { temperature: 0 })) };
  },

  /** a request that is not valid -> why */
  async refuse({ model: address, messages, options }) {
    const model = await loaded(address);
    return failure(async () => collect(model.chat(messages, options)));
  },

  /** an artifact that cannot be loaded -> why */
  async fail({ model: address }) {
    return failure(() => loadModel(address));
  },
};

async function failure(action) {
  try {
    await action();
    return null;
  } catch ({ name, message, hint }) {
    return { name, message, hint };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let reply;
  try {
    reply = { result: await tasks[request.task](request) };
  } catch (error) {
    reply = { failure: error.stack };
  }
  console.log(JSON.stringify(reply));
}
