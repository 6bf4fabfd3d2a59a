-- Counts a publication, so that gateways look. KEYS: generation. It starts from the clock, so that a server that was
-- wiped and filled again between two looks does not count up to where it was.
local generation = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, now_ms())
redis.call('SET', KEYS[1], digits(generation))
return generation
