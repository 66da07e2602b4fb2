// The official OpenAI client for Node, driven line by line: a JSON request on standard input, its outcome on standard output.
//
// A request is {id, op, base, key, retries, timeout, headers, args}; an outcome {id, ok} or {id, error, before}, where
// `before` is what had come of a stream. {abort: id} aborts a request that runs; {id, began: true} says that the first
// chunk of an `abort` stream has come. Knows the API and this client only: tests/clients/drivers.py says what each op
// is and drives the Python client to the same outcomes.
'use strict';

const readline = require('node:readline');
const { createRequire } = require('node:module');

const installed = createRequire(process.argv[2]); // the package.json beside node_modules
const OpenAI = installed('openai');
const { zodResponseFormat } = installed('openai/helpers/zod');
const { z } = installed('zod');

const City = z.object({ city: z.string(), visits: z.number() });
const NAMES = { APIConnectionTimeoutError: 'APITimeoutError' };
const aborts = new Map();

function say(line) {
  process.stdout.write(JSON.stringify(line) + '\n');
}

function problem(error) {
  const inner = error.error || {};
  const name = error.constructor.name;
  return {
    class: NAMES[name] || name,
    status: error.status ?? null,
    code: error.code ?? null,
    param: error.param ?? null,
    type: error.type ?? null,
    request_id: inner.request_id ?? error.requestID ?? null,
    header_id: error.requestID ?? null,
    message: inner.message ?? error.message,
  };
}

const counts = (usage) => (usage ? [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens] : null);

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text; // the model was cut off in the middle of its call
  }
}

const called = (calls) => (calls ?? []).map((call) => [call.function.name, parsed(call.function.arguments)]);
const named = (logprobs) => (logprobs?.content ?? []).map((token) => [token.token, token.logprob]);

function reply(whole) {
  return {
    model: whole.model,
    usage: counts(whole.usage),
    choices: whole.choices.map((choice) => ({
      content: choice.message.content ?? '',
      reasoning: choice.message.reasoning_content ?? '',
      calls: called(choice.message.tool_calls),
      ids: (choice.message.tool_calls ?? []).map((call) => call.id),
      finish: choice.finish_reason,
      tokens: named(choice.logprobs),
    })),
  };
}

function streamed() {
  const lists = { finishes: [], roles: [], usages: [], ids: [], created: [], models: [], tokens: [], pieces: [] };
  return { content: '', reasoning: '', chunks: 0, ...lists };
}

function add(found, chunk) {
  found.chunks += 1;
  for (const [list, value] of [[found.ids, chunk.id], [found.created, chunk.created], [found.models, chunk.model]]) {
    if (!list.includes(value)) list.push(value);
  }
  if (chunk.usage) found.usages.push(counts(chunk.usage));
  for (const choice of chunk.choices) {
    const delta = choice.delta ?? { content: choice.text };
    found.content += delta.content ?? '';
    found.reasoning += delta.reasoning_content ?? '';
    if (delta.role) found.roles.push(delta.role);
    if (choice.finish_reason) found.finishes.push(choice.finish_reason);
    found.tokens.push(...named(choice.logprobs));
    for (const call of delta.tool_calls ?? []) {
      found.pieces.push([call.index, call.id ?? null, call.function?.name ?? null, call.function?.arguments ?? null]);
    }
  }
}

async function read(stream, found) {
  for await (const chunk of stream) add(found, chunk);
  return found;
}

async function leave(stream, asked) {
  let chunks = 0;
  for await (const chunk of stream) {
    chunks += chunk.choices.length;
    if (chunks === asked.after) stream.controller.abort();
  }
  return { chunks: chunks >= asked.after };
}

const OPS = {
  chat: async (client, args, options) => reply(await client.chat.completions.create(args, options)),
  stream: async (client, args, options, found) =>
    read(await client.chat.completions.create({ ...args, stream: true }, options), found),
  gather: async (client, args, options) =>
    reply(await client.chat.completions.stream(args, options).finalChatCompletion()),
  parse: async (client, args, options) => {
    const format = { ...args, response_format: zodResponseFormat(City, 'city') };
    const parsed = (await client.chat.completions.parse(format, options)).choices[0].message.parsed;
    return { city: parsed.city, visits: parsed.visits };
  },
  embed: async (client, args, options) => {
    const answer = await client.embeddings.create(args, options);
    return { model: answer.model, usage: [answer.usage.prompt_tokens], vectors: answer.data.map((item) => item.embedding) };
  },
  complete: async (client, args, options) => {
    const whole = await client.completions.create(args, options);
    return { model: whole.model, usage: counts(whole.usage), texts: whole.choices.map((one) => [one.text, one.finish_reason]) };
  },
  complete_stream: async (client, args, options, found) =>
    read(await client.completions.create({ ...args, stream: true }, options), found),
  models: async (client, args, options) => {
    const found = [];
    for await (const model of client.models.list(options)) found.push(model.id);
    return found;
  },
  model: async (client, args, options) => (await client.models.retrieve(args.id, options)).id,
  leave: async (client, args, options, found, asked) =>
    leave(await client.chat.completions.create({ ...args, stream: true }, options), asked),
  warned: async (client, args, options) => {
    const { response } = await client.chat.completions.create(args, options).withResponse();
    return { warnings: response.headers.get('x-flm-warnings'), request_id: response.headers.get('x-request-id') };
  },
};

async function run(asked) {
  const client = new OpenAI({
    baseURL: asked.base,
    apiKey: asked.key,
    maxRetries: asked.retries,
    timeout: asked.timeout * 1000,
    defaultHeaders: asked.headers,
  });
  const controller = new AbortController();
  aborts.set(asked.id, controller);
  const found = streamed();
  try {
    say({ id: asked.id, ok: await OPS[asked.op](client, asked.args, { signal: controller.signal }, found, asked) });
  } catch (error) {
    say({ id: asked.id, error: problem(error), before: found.content });
  } finally {
    aborts.delete(asked.id);
  }
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const asked = JSON.parse(line);
  if (asked.abort !== undefined) aborts.get(asked.abort)?.abort();
  else run(asked);
}).on('close', () => process.exit(0));
