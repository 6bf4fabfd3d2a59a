// The `@google/genai` client. Base URL: the root, without a version (https://host, https://host/google): it adds
// /v1beta. Key: x-goog-api-key.

import { FunctionCallingConfigMode, GoogleGenAI } from "@google/genai";
import { z } from "zod";

import { Place, WEATHER_PARAMETERS, counted, image, prompt, serve, toolCall } from "./driver.mjs";

const TOOLS = {
  tools: [
    {
      functionDeclarations: [
        { name: "get_weather", description: "The weather in a city.", parametersJsonSchema: WEATHER_PARAMETERS },
      ],
    },
  ],
  toolConfig: {
    functionCallingConfig: { mode: FunctionCallingConfigMode.ANY, allowedFunctionNames: ["get_weather"] },
  },
};

function client(ask) {
  const httpOptions = { baseUrl: ask.base_url };
  if (ask.headers !== undefined) httpOptions.headers = ask.headers;
  if (ask.timeout_s !== undefined) httpOptions.timeout = ask.timeout_s * 1000;
  if (ask.max_retries !== undefined) httpOptions.retryOptions = { attempts: ask.max_retries + 1 };
  return new GoogleGenAI({ apiKey: ask.api_key, httpOptions });
}

const question = (ask, config, contents) => ({
  model: ask.model,
  contents: contents ?? prompt(ask),
  config: { ...config, ...ask.request },
});

// Adds one answer, or one chunk of it.
function read(answer, outcome) {
  for (const part of answer.candidates?.[0]?.content?.parts ?? []) {
    if (part.text && !part.thought) outcome.text += part.text;
    if (part.functionCall) outcome.tool_calls.push(toolCall(part.functionCall.name, part.functionCall.args));
  }
  outcome.usage = answer.usageMetadata ?? outcome.usage;
}

async function generate(ask, outcome, config, contents) {
  read(await client(ask).models.generateContent(question(ask, config, contents)), outcome);
}

async function stream(ask, outcome, config) {
  const chunks = await client(ask).models.generateContentStream(question(ask, config));
  for await (const chunk of counted(ask, outcome, chunks)) read(chunk, outcome);
}

async function structured(ask, outcome) {
  await generate(ask, outcome, { responseMimeType: "application/json", responseJsonSchema: z.toJSONSchema(Place) });
  outcome.parsed = JSON.parse(outcome.text);
}

async function embed(ask, outcome) {
  const answer = await client(ask).models.embedContent({ model: ask.model, contents: prompt(ask) });
  outcome.data = { vectors: answer.embeddings.length, dimensions: answer.embeddings[0].values.length };
}

async function countTokens(ask, outcome) {
  const answer = await client(ask).models.countTokens({ model: ask.model, contents: prompt(ask) });
  outcome.data = { total_tokens: answer.totalTokens };
}

async function models(ask, outcome) {
  outcome.data = [];
  for await (const each of await client(ask).models.list()) outcome.data.push(each.name);
}

await serve({
  plain: generate,
  stream,
  tools: (ask, outcome) => generate(ask, outcome, TOOLS),
  tools_stream: (ask, outcome) => stream(ask, outcome, TOOLS),
  vision: (ask, outcome) =>
    generate(ask, outcome, {}, [{ inlineData: { mimeType: "image/png", data: image(ask) } }, { text: prompt(ask) }]),
  structured,
  embed,
  count_tokens: countTokens,
  models,
});
