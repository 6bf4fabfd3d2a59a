// The `@anthropic-ai/sdk` client. Base URL: the root, without /v1 (https://host, https://host/anthropic). Key: Bearer,
// with `apiKey` and with `authToken` ("credential": "authToken") alike in this version.

import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";

import { Place, WEATHER_PARAMETERS, counted, given, image, prompt, serve, toolCall } from "./driver.mjs";

const TOOLS = {
  tools: [{ name: "get_weather", description: "The weather in a city.", input_schema: WEATHER_PARAMETERS }],
  tool_choice: { type: "tool", name: "get_weather" },
};

function client(ask) {
  const options = given(ask, { max_retries: "maxRetries", headers: "defaultHeaders" });
  if (ask.timeout_s !== undefined) options.timeout = ask.timeout_s * 1000;
  return new Anthropic({ [ask.credential ?? "apiKey"]: ask.api_key, baseURL: ask.base_url, ...options });
}

const question = (ask, fields) => ({
  model: ask.model,
  max_tokens: 256,
  messages: [{ role: "user", content: prompt(ask) }],
  ...fields,
  ...ask.request,
});

const blocks = (message, type) => message.content.filter((block) => block.type === type);

function read(message, outcome) {
  outcome.text = blocks(message, "text").map((block) => block.text).join("");
  outcome.tool_calls = blocks(message, "tool_use").map((block) => toolCall(block.name, block.input));
  outcome.usage = message.usage;
  const thinking = blocks(message, "thinking").map((block) => block.thinking).join("");
  outcome.data = { stop_reason: message.stop_reason, thinking };
}

async function messages(ask, outcome, fields) {
  read(await client(ask).messages.create(question(ask, fields)), outcome);
}

async function stream(ask, outcome, fields) {
  const events = client(ask).messages.stream(question(ask, fields));
  for await (const event of counted(ask, outcome, events)) {
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") outcome.text += event.delta.text;
  }
  if (ask.hang_up_after === undefined) read(await events.finalMessage(), outcome);
}

async function streamRaw(ask, outcome) {
  const events = await client(ask).messages.create(question(ask, { stream: true }));
  for await (const event of counted(ask, outcome, events)) {
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") outcome.text += event.delta.text;
    else if (event.type === "message_delta") outcome.usage = event.usage;
  }
}

function vision(ask, outcome) {
  const picture = { type: "image", source: { type: "base64", media_type: "image/png", data: image(ask) } };
  return messages(ask, outcome, {
    messages: [{ role: "user", content: [picture, { type: "text", text: prompt(ask) }] }],
  });
}

async function structured(ask, outcome) {
  const format = { output_config: { format: zodOutputFormat(Place) } };
  const message = await client(ask).messages.parse(question(ask, format));
  read(message, outcome);
  outcome.parsed = message.parsed_output;
}

async function countTokens(ask, outcome) {
  const words = [{ role: "user", content: prompt(ask) }];
  outcome.data = await client(ask).messages.countTokens({ model: ask.model, messages: words });
}

async function models(ask, outcome) {
  outcome.data = [];
  for await (const each of client(ask).models.list()) outcome.data.push(each.id);
}

function submit(ours, ask) {
  const requests = [0, 1].map((place) => ({ custom_id: `call-${place}`, params: question(ask) }));
  return ours.messages.batches.create({ requests });
}

// Submits a batch of two requests and looks at it once.
async function batches(ask, outcome) {
  const ours = client(ask);
  const submitted = await submit(ours, ask);
  const batch = await ours.messages.batches.retrieve(submitted.id);
  outcome.data = { id: batch.id, first: submitted.processing_status, status: batch.processing_status };
  outcome.data.results_url = batch.results_url;
}

// Reads the results of the batch `batch_id`, or of a new one. The client goes to the address in `results_url`.
async function batchResults(ask, outcome) {
  const ours = client(ask);
  const batchId = ask.batch_id ?? (await submit(ours, ask)).id;
  outcome.data = [];
  for await (const each of await ours.messages.batches.results(batchId)) outcome.data.push(each);
  outcome.chunks = outcome.data.length;
}

await serve({
  plain: messages,
  stream,
  stream_raw: streamRaw,
  tools: (ask, outcome) => messages(ask, outcome, TOOLS),
  tools_stream: (ask, outcome) => stream(ask, outcome, TOOLS),
  vision,
  structured,
  thinking_stream: (ask, outcome) =>
    stream(ask, outcome, { max_tokens: 2048, thinking: { type: "enabled", budget_tokens: 1024 } }),
  count_tokens: countTokens,
  models,
  batches,
  batch_results: batchResults,
});
