-- Twin of core.reserve.claim_due, over the holds that were the next ones due a moment ago.
-- KEYS: epoch, due, then each hold. ARGV: each reservation id. Answers of each hold that is due: id, amount, charges,
-- context, admitted at.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end
local now = now_ms()
local claimed = {}
for index, id in ipairs(ARGV) do
  local due = tonumber(redis.call('ZSCORE', KEYS[2], id))
  if due and due <= now then
    redis.call('ZADD', KEYS[2], digits(now + CLAIM_MS), id)
    local hold = redis.call('HMGET', KEYS[index + 2], 'amount', 'charges', 'context', 'admitted')
    claimed[#claimed + 1] = { id, unpack(hold) }
  end
end
return claimed
