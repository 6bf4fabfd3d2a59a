-- Reads which budgets of an org are backfilled and where its own fences stand, as of one instant.
-- KEYS: marks, then offset fences. Answers the marks' fields and values, then each fence, '0' where there is none.
local answer = { redis.call('HGETALL', KEYS[1]) }
for index = 2, #KEYS do
  answer[index] = redis.call('GET', KEYS[index]) or '0'
end
return answer
