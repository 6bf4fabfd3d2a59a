// The loop every Node driver runs, the same protocol as tests/clients/python/driver.py: scenarios as JSON lines on
// standard input, outcomes as JSON lines on standard output. See there for the fields of both.

import { createInterface } from "node:readline";

import { z } from "zod";

// Eight by eight pixels, all red.
const RED_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP4z8CAFTEMLQkAKP8/wc53yE8AAAAASUVORK5CYII=";

// What `structured` asks for.
export const Place = z.object({ city: z.string(), country: z.string() });

export const WEATHER_PARAMETERS = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

export const prompt = (ask) => ask.prompt ?? "Say hello.";

export const image = (ask) => ask.image_png ?? RED_PNG;

// The options that the scenario names, under the client's own names for them.
export function given(ask, names) {
  const entries = Object.entries(names).filter(([ours]) => ask[ours] !== undefined);
  return Object.fromEntries(entries.map(([ours, theirs]) => [theirs, ask[ours]]));
}

// A stream's chunks, counted, up to where the scenario hangs up.
export async function* counted(ask, outcome, stream) {
  for await (const chunk of stream) {
    outcome.chunks += 1;
    yield chunk;
    if (outcome.chunks === ask.hang_up_after) return;
  }
}

// One tool call; arguments that came as text are decoded.
export const toolCall = (name, args) => ({ name, arguments: typeof args === "string" ? JSON.parse(args) : args });

// Runs what comes in until the input ends. `error` is `plain`, expected to be refused.
export async function serve(scenarios) {
  const all = { ...scenarios, error: scenarios.plain };
  for await (const line of createInterface({ input: process.stdin })) {
    const ask = JSON.parse(line);
    let outcome;
    if (ask.scenario === "scenarios") outcome = { ok: true, data: Object.keys(all).sort() };
    else if (all[ask.scenario] === undefined) throw new Error(`there is no scenario called ${ask.scenario}`);
    else outcome = await run(all[ask.scenario], ask);
    process.stdout.write(JSON.stringify(outcome) + "\n");
  }
}

async function run(scenario, ask) {
  const outcome = { text: "", tool_calls: [], usage: null, parsed: null, chunks: 0, data: null };
  const began = performance.now();
  try {
    await scenario(ask, outcome);
    outcome.ok = true;
  } catch (error) {
    Object.assign(outcome, failure(error));
  }
  outcome.elapsed_s = (performance.now() - began) / 1000;
  return outcome;
}

// What a caller can see of an exception. `causes` are the errors behind it, nearest first; `response_body` is the text
// that came, where the client keeps it beside what it made of it.
function failure(error) {
  const behind = [];
  for (let each = error.lastError ?? error.cause; each && !behind.includes(each); each = each.lastError ?? each.cause) {
    behind.push(each);
  }
  const texts = ["code", "type", "param"].filter((name) => typeof error[name] === "string");
  const known = [error, ...behind];
  return {
    ok: false,
    exception: nameOf(error),
    mro: ancestors(error),
    causes: behind.map(nameOf),
    status: first(known, (each) => each.status ?? each.statusCode),
    message: error.message,
    body: first(known, (each) => each.error ?? each.data ?? each.responseBody),
    response_body: first(known, (each) => each.responseBody),
    ...Object.fromEntries(texts.map((name) => [name, error[name]])),
  };
}

const first = (errors, pick) => errors.map(pick).find((value) => value !== undefined && value !== null) ?? null;

// The AI SDK's classes are told apart by `name`; the others' by their class.
const nameOf = (error) => (error.name?.startsWith("AI_") ? error.name : (error.constructor?.name ?? typeof error));

function ancestors(error) {
  const names = [];
  for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) names.push(kind.name);
  return names;
}
