// The scenarios of the AI SDK (`ai`): its interface is one, whatever the provider.

import { Output, generateText, jsonSchema, streamText, tool } from "ai";

import { Place, WEATHER_PARAMETERS, counted, given, image, prompt, toolCall } from "./driver.mjs";

const TOOLS = {
  tools: { get_weather: tool({ description: "The weather in a city.", inputSchema: jsonSchema(WEATHER_PARAMETERS) }) },
  toolChoice: { type: "tool", toolName: "get_weather" },
};

const question = (model, ask, fields) => ({
  model,
  prompt: prompt(ask),
  ...given(ask, { max_retries: "maxRetries", headers: "headers" }),
  ...fields,
  ...ask.request,
});

function read(result, outcome) {
  outcome.text = result.text;
  outcome.tool_calls = result.toolCalls.map((call) => toolCall(call.toolName, call.input));
  outcome.usage = result.usage;
  outcome.data = { finish_reason: result.finishReason };
}

async function generate(model, ask, outcome, fields) {
  const result = await generateText(question(model, ask, fields));
  read(result, outcome);
  return result;
}

// The stream reports an error as a part of itself; it is thrown here, as a caller would see it.
async function stream(model, ask, outcome, fields) {
  const stop = new AbortController();
  const settings = { onError: () => {}, abortSignal: stop.signal, ...fields };
  const result = streamText(question(model, ask, settings));
  for await (const part of counted(ask, outcome, result.fullStream)) {
    if (part.type === "text-delta") outcome.text += part.text;
    else if (part.type === "error") throw part.error;
    else if (part.type === "tool-call") outcome.tool_calls.push(toolCall(part.toolName, part.input));
    else if (part.type === "finish") outcome.usage = part.totalUsage;
  }
  stop.abort();
}

function vision(model, ask, outcome) {
  const picture = { type: "image", image: image(ask), mediaType: "image/png" };
  const content = [{ type: "text", text: prompt(ask) }, picture];
  return generate(model, ask, outcome, { prompt: undefined, messages: [{ role: "user", content }] });
}

async function structured(model, ask, outcome) {
  const result = await generate(model, ask, outcome, { output: Output.object({ schema: Place }) });
  outcome.parsed = result.output;
}

// The common scenarios, over a function that makes the model of a scenario.
export const scenarios = (model) => ({
  plain: (ask, outcome) => generate(model(ask), ask, outcome),
  stream: (ask, outcome) => stream(model(ask), ask, outcome),
  tools: (ask, outcome) => generate(model(ask), ask, outcome, TOOLS),
  tools_stream: (ask, outcome) => stream(model(ask), ask, outcome, TOOLS),
  vision: (ask, outcome) => vision(model(ask), ask, outcome),
  structured: (ask, outcome) => structured(model(ask), ask, outcome),
});
