"""Usage read off vendors' answers, one module a protocol; `sse` frames event streams for all of them."""
