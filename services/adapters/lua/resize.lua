-- Twin of core.reserve.resize.
-- KEYS: epoch, configuration, hold, due, then the figures of each of the hold's charges.
-- ARGV: reservation id, amount, hold ms, context, the charges as JSON, then of each: window, its budget's limit.
-- Answers cold | gone | refused | known, version, now, charges, expires at, then spent and held of each budget: with the
-- hold as it is now, but without it in a refusal.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return { 'cold' }
end
local hold = redis.call('HMGET', KEYS[3], 'phase', 'amount', 'charges', 'expires')
if hold[1] ~= 'held' or hold[3] ~= ARGV[5] then
  return { 'gone' }
end
if tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1])) ~= tonumber(hold[4]) then
  return { 'gone' }  -- a reaper has it, and its expiry may be on the way
end
local now = now_ms()
local old, amount = hold[2], ARGV[2]
local answer = { 'known', redis.call('HGET', KEYS[2], 'v') or '0', now, hold[3], digits(now + ARGV[3]) }
local grows = not has_room(old, '0', '0', amount)
local spans = {}

for index = 5, #KEYS do
  local key, span = KEYS[index], parse_span(ARGV[index * 2 - 4])
  spans[index] = span
  if span.bucket and redis.call('EXISTS', key) == 1 then
    advance(key, span.bucket_ms, span.count, now)
  end
  add_held(key, span, negative(old), now)
end
for index = 5, #KEYS do
  local key = KEYS[index]
  local figures = redis.call('HMGET', key, spans[index].bucket and 'total' or 'spent', 'held')
  local spent, held = figures[1] or '0', figures[2] or '0'
  if grows and not has_room(ARGV[index * 2 - 3], spent, held, amount) then
    answer[1] = 'refused'
  end
  answer[#answer + 1] = spent
  answer[#answer + 1] = held
end
local is_held = answer[1] == 'known'
for index = 5, #KEYS do
  add_held(KEYS[index], spans[index], is_held and amount or old, now)
  if is_held then
    answer[index * 2 - 3] = redis.call('HGET', KEYS[index], 'held') or '0'
  end
end
set_expiries(now)
if is_held then
  redis.call('HSET', KEYS[3], 'amount', amount, 'context', ARGV[4], 'expires', answer[5], 'resized', digits(now))
  redis.call('ZADD', KEYS[4], answer[5], ARGV[1])
end
return answer
