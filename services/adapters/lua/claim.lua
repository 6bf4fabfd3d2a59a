-- Twin of core.reserve.claim_due. No more is read than what is due, and at most so much of it.
-- KEYS: epoch, due. ARGV: how many at most, prefix of the org's keys. The caller can't name the holds' keys: they are
-- named here, in the org's slot. Answers of each hold, earliest first: id, amount, charges, context, admitted at.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end
local now = now_ms()
local claimed = {}
for index, id in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', digits(now), 'BYSCORE', 'LIMIT', 0, ARGV[1])) do
  redis.call('ZADD', KEYS[2], digits(now + CLAIM_MS), id)
  claimed[index] = { id, unpack(redis.call('HMGET', ARGV[2] .. 'h:' .. id, 'amount', 'charges', 'context', 'admitted')) }
end
return claimed
