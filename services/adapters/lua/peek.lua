-- Twin of core.reserve.peek: reads, changes nothing.
-- KEYS: epoch, then each budget's figures. ARGV: of each budget kind (r for a ring), bucket ms, count.
-- Answers now, then of each budget spent, held, and the list of what has left its ring but is counted in spent; or
-- nothing when the org is cold.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end
local now = now_ms()
local answer = { now }
for index = 2, #KEYS do
  local key, at = KEYS[index], index * 3 - 5
  local figures, left = nil, {}
  if ARGV[at] ~= 'r' then
    figures = redis.call('HMGET', key, 'spent', 'held')
  else
    figures = redis.call('HMGET', key, 'total', 'held')
    local low = math.floor(now / ARGV[at + 1]) - ARGV[at + 2]
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local bucket = tonumber(field)
      if bucket and bucket < low then
        left[#left + 1] = redis.call('HGET', key, field)
      end
    end
  end
  answer[#answer + 1] = { figures[1] or '0', figures[2] or '0', left }
end
return answer
