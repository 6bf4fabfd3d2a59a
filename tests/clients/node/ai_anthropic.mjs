// The AI SDK with @ai-sdk/anthropic. Base URL: with /v1, unlike Anthropic's own clients (https://host/v1,
// https://host/anthropic/v1). Key: x-api-key.

import { createAnthropic } from "@ai-sdk/anthropic";

import { scenarios } from "./ai_common.mjs";
import { serve } from "./driver.mjs";

await serve(scenarios((ask) => createAnthropic({ apiKey: ask.api_key, baseURL: ask.base_url })(ask.model)));
