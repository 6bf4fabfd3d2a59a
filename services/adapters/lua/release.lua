-- Twin of core.reserve.release.
-- KEYS: hold, due, then the figures of each of its charges. ARGV: reservation id, its charges as JSON, their windows,
-- prefix of the org's keys.
-- Answers 1, or 0 when there is no such hold any more.
local hold = redis.call('HMGET', KEYS[1], 'phase', 'amount', 'charges', 'implied', 'expires', 'left')
if hold[1] ~= 'held' or hold[3] ~= ARGV[2] then
  return 0
end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1])) ~= tonumber(hold[5]) then
  return 0  -- a reaper has it: what its expiry books must stay held until that is spent
end
local now = now_ms()
for index = 3, #KEYS do
  add_held(KEYS[index], parse_span(ARGV[index]), negative(hold[2]), now)
end
for _, charge in ipairs(hold[4] and decode_charges(ARGV[#ARGV], hold[4]) or {}) do
  add_held(charge.key, charge.span, negative(hold[2]), now)
end
if hold[6] then
  hold_left(ARGV[#ARGV], hold[6], true, now)
end
set_expiries(now)
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
