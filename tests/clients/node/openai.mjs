// The `openai` client for Node. Base URL: with /v1 (https://host/v1, https://host/openai/v1). Key: Bearer.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";

import { Place, WEATHER_PARAMETERS, counted, given, image, prompt, serve, toolCall } from "./driver.mjs";

const FUNCTION = { name: "get_weather", description: "The weather in a city.", parameters: WEATHER_PARAMETERS };
const TOOLS = {
  tools: [{ type: "function", function: FUNCTION }],
  tool_choice: { type: "function", function: { name: "get_weather" } },
};
const RESPONSES_TOOLS = {
  tools: [{ type: "function", ...FUNCTION }],
  tool_choice: { type: "function", name: "get_weather" },
};

function client(ask) {
  const options = given(ask, { max_retries: "maxRetries", headers: "defaultHeaders" });
  if (ask.timeout_s !== undefined) options.timeout = ask.timeout_s * 1000;
  return new OpenAI({ apiKey: ask.api_key, baseURL: ask.base_url, ...options });
}

const question = (ask, fields) => ({
  model: ask.model,
  messages: [{ role: "user", content: prompt(ask) }],
  ...fields,
  ...ask.request,
});

function read(completion, outcome) {
  const message = completion.choices[0].message;
  outcome.text = message.content ?? "";
  outcome.tool_calls = (message.tool_calls ?? []).map((call) => toolCall(call.function.name, call.function.arguments));
  outcome.usage = completion.usage ?? null;
}

async function chat(ask, outcome, fields) {
  read(await client(ask).chat.completions.create(question(ask, fields)), outcome);
}

async function stream(ask, outcome, fields) {
  const calls = new Map();
  const chunks = await client(ask).chat.completions.create(question(ask, { stream: true, ...fields }));
  for await (const chunk of counted(ask, outcome, chunks)) {
    outcome.usage = chunk.usage ?? outcome.usage;
    const delta = chunk.choices[0]?.delta;
    outcome.text += delta?.content ?? "";
    for (const part of delta?.tool_calls ?? []) {
      const pieces = calls.get(part.index) ?? ["", ""];
      pieces[0] += part.function.name ?? "";
      pieces[1] += part.function.arguments ?? "";
      calls.set(part.index, pieces);
    }
  }
  outcome.tool_calls = [...calls.values()].map((pieces) => toolCall(...pieces));
}

function vision(ask, outcome) {
  const picture = { type: "image_url", image_url: { url: `data:image/png;base64,${image(ask)}` } };
  return chat(ask, outcome, { messages: [{ role: "user", content: [{ type: "text", text: prompt(ask) }, picture] }] });
}

async function structured(ask, outcome) {
  const asked = question(ask, { response_format: zodResponseFormat(Place, "place") });
  const completion = await client(ask).chat.completions.parse(asked);
  read(completion, outcome);
  outcome.parsed = completion.choices[0].message.parsed;
}

const inputOf = (ask, fields) => ({ model: ask.model, input: prompt(ask), ...fields, ...ask.request });

function readResponse(response, outcome) {
  outcome.text = response.output_text ?? outcome.text;
  const calls = response.output.filter((item) => item.type === "function_call");
  outcome.tool_calls = calls.map((item) => toolCall(item.name, item.arguments));
  outcome.usage = response.usage ?? null;
  outcome.data = { status: response.status };
}

async function responses(ask, outcome, fields) {
  readResponse(await client(ask).responses.create(inputOf(ask, fields)), outcome);
}

async function responsesStream(ask, outcome, fields) {
  const kinds = [];
  const events = await client(ask).responses.create(inputOf(ask, { stream: true, ...fields }));
  for await (const event of counted(ask, outcome, events)) {
    kinds.push(event.type);
    if (event.type === "response.output_text.delta") outcome.text += event.delta;
    else if (["response.completed", "response.incomplete", "response.failed"].includes(event.type)) {
      readResponse(event.response, outcome);
    }
  }
  outcome.data = { ...outcome.data, events: kinds };
}

async function responsesStructured(ask, outcome) {
  const response = await client(ask).responses.parse(inputOf(ask, { text: { format: zodTextFormat(Place, "place") } }));
  readResponse(response, outcome);
  outcome.parsed = response.output_parsed;
}

async function completions(ask, outcome) {
  const completion = await client(ask).completions.create({ model: ask.model, prompt: prompt(ask), ...ask.request });
  outcome.text = completion.choices[0].text;
  outcome.usage = completion.usage ?? null;
}

async function embed(ask, outcome) {
  const answer = await client(ask).embeddings.create({ model: ask.model, input: [prompt(ask)], ...ask.request });
  outcome.data = { vectors: answer.data.length, dimensions: answer.data[0].embedding.length };
  outcome.usage = answer.usage;
}

async function images(ask, outcome) {
  const answer = await client(ask).images.generate({ model: ask.model, prompt: prompt(ask), ...ask.request });
  outcome.data = { images: answer.data.length };
  outcome.usage = answer.usage ?? null;
}

async function speech(ask, outcome) {
  const options = { voice: "alloy", ...ask.request };
  const answer = await client(ask).audio.speech.create({ model: ask.model, input: prompt(ask), ...options });
  outcome.data = { bytes: (await answer.arrayBuffer()).byteLength };
}

async function moderations(ask, outcome) {
  const answer = await client(ask).moderations.create({ model: ask.model, input: prompt(ask) });
  outcome.data = { flagged: answer.results.map((each) => each.flagged) };
}

async function models(ask, outcome) {
  outcome.data = [];
  for await (const each of client(ask).models.list()) outcome.data.push(each.id);
}

await serve({
  plain: chat,
  stream,
  stream_usage: (ask, outcome) => stream(ask, outcome, { stream_options: { include_usage: true } }),
  tools: (ask, outcome) => chat(ask, outcome, TOOLS),
  tools_stream: (ask, outcome) => stream(ask, outcome, TOOLS),
  vision,
  structured,
  responses,
  responses_stream: responsesStream,
  responses_tools: (ask, outcome) => responses(ask, outcome, RESPONSES_TOOLS),
  responses_tools_stream: (ask, outcome) => responsesStream(ask, outcome, RESPONSES_TOOLS),
  responses_structured: responsesStructured,
  completions,
  embed,
  images,
  speech,
  moderations,
  models,
});
