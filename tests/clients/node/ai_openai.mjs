// The AI SDK with @ai-sdk/openai. Base URL: with /v1 (https://host/v1, https://host/openai/v1). Key: Bearer. Its default
// model speaks /v1/responses; the scenarios that begin with `chat_` use openai.chat(), which speaks chat completions.

import { createOpenAI } from "@ai-sdk/openai";
import { embed } from "ai";

import { scenarios } from "./ai_common.mjs";
import { given, prompt, serve } from "./driver.mjs";

const provider = (ask) => createOpenAI({ apiKey: ask.api_key, baseURL: ask.base_url });

const overChat = scenarios((ask) => provider(ask).chat(ask.model));

async function embedOne(ask, outcome) {
  const options = given(ask, { max_retries: "maxRetries", headers: "headers" });
  const answer = await embed({ model: provider(ask).embedding(ask.model), value: prompt(ask), ...options });
  outcome.data = { vectors: 1, dimensions: answer.embedding.length };
  outcome.usage = answer.usage;
}

await serve({
  ...scenarios((ask) => provider(ask)(ask.model)),
  ...Object.fromEntries(Object.entries(overChat).map(([name, scenario]) => [`chat_${name}`, scenario])),
  embed: embedOne,
});
