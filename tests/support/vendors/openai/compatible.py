"""Usage as servers report it that speak OpenAI's dialect in their own way: names and places beyond OpenAI's."""

from collections.abc import Sequence
from typing import Any

from tests.support.vendors.openai.chat import chunks, plain_usage


def deepseek_usage(prompt: int = 13, completion: int = 9, hit: int = 0, reasoning: int | None = None) -> dict[str, Any]:
    """DeepSeek: the prompt is split into cache hits and misses beside it; no cache write is charged."""
    answer = plain_usage(prompt, completion)
    answer |= {
        "prompt_tokens_details": {"cached_tokens": hit},
        "prompt_cache_hit_tokens": hit,
        "prompt_cache_miss_tokens": prompt - hit,
    }
    return answer if reasoning is None else {**answer, "completion_tokens_details": {"reasoning_tokens": reasoning}}


def groq_usage(prompt: int = 13, completion: int = 9) -> dict[str, Any]:
    """Groq: times in seconds beside the tokens."""
    times = {"queue_time": 0.0376, "prompt_time": 0.0004, "completion_time": 0.0186, "total_time": 0.019}
    return plain_usage(prompt, completion) | times


def groq_chunks(deltas: Sequence[dict[str, Any]], model: str, used: dict[str, Any]) -> list[dict[str, Any]]:
    """A Groq stream: usage comes unasked, in ``x_groq`` of the chunk with the finish reason."""
    *before, last = chunks(deltas, model)
    return [*before, {**last, "x_groq": {"id": "req_01jbd6g2qdfw2adyrt2az8hz4w", "usage": used}}]


def xai_usage(
    prompt: int = 13,
    completion: int = 9,
    cached: int = 0,
    reasoning: int = 0,
    sources: int = 0,
    ticks: int | None = None,
) -> dict[str, Any]:
    """xAI: reasoning tokens are NOT in the completion, only in the total; sources of live search are counted.

    `ticks` is the cost it charged, in ten-billionths of a dollar.
    """
    charged = {} if ticks is None else {"cost_in_usd_ticks": ticks}
    return {
        **charged,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion + reasoning,
        "prompt_tokens_details": {
            "text_tokens": prompt,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": cached,
        },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "num_sources_used": sources,
    }


def openrouter_usage(
    prompt: int = 13, completion: int = 9, cached: int = 0, reasoning: int = 0, cost: float = 0.00014
) -> dict[str, Any]:
    """OpenRouter: it names the cost it charged, in credits (dollars)."""
    return {
        **plain_usage(prompt, completion),
        "cost": cost,
        "is_byok": False,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "cost_details": {"upstream_inference_cost": None},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def vllm_usage(prompt: int = 13, completion: int = 9, cached: int | None = None) -> dict[str, Any]:
    """vLLM: the details are null unless it was started to report them."""
    details = None if cached is None else {"cached_tokens": cached}
    return plain_usage(prompt, completion) | {"prompt_tokens_details": details}
