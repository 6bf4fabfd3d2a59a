-- Twin of core.reserve.reserve.
-- KEYS: epoch, configuration, hold, due, then each budget's figures.
-- ARGV: reservation id, amount, hold ms, context, then of each budget: kind (c or r), start ms or bucket ms, end ms or
--       count, limit, and its charge as JSON (a ring's without its end, which is the bucket that is decided here).
-- Answers cold | stale, version, now | refused | held | known, version, now, charges, expires at, then spent and held
-- of each budget: before this hold.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return { 'cold' }
end
local version = redis.call('HGET', KEYS[2], 'v') or '0'
local now = now_ms()
local amount = ARGV[2]
local answer = { 'held', version, now, '', '' }
local charges = {}

local is_known = redis.call('EXISTS', KEYS[3]) == 1
if is_known then
  local hold = redis.call('HMGET', KEYS[3], 'charges', 'expires')
  answer = { 'known', version, now, hold[1], hold[2] }
else
  for at = 5, #ARGV, 5 do
    if ARGV[at] == 'c' and (now < tonumber(ARGV[at + 1]) or now >= tonumber(ARGV[at + 2])) then
      return { 'stale', version, now }
    end
  end
end

for index = 5, #KEYS do
  local key, at = KEYS[index], index * 5 - 20
  local figures
  if ARGV[at] == 'c' then
    figures = redis.call('HMGET', key, 'spent', 'held')
    charges[index - 4] = ARGV[at + 4]
  else
    local bucket = math.floor(now / ARGV[at + 1])
    figures = redis.call('HMGET', key, 'total', 'held', 'low')
    if figures[3] and tonumber(figures[3]) < bucket - ARGV[at + 2] then
      advance(key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), now)
      figures = redis.call('HMGET', key, 'total', 'held')
    end
    charges[index - 4] = ARGV[at + 4] .. digits(bucket) .. '"]'
  end
  local spent, held = figures[1] or '0', figures[2] or '0'
  if not is_known and not has_room(ARGV[at + 3], spent, held, amount) then
    answer[1] = 'refused'
  end
  answer[#answer + 1] = spent
  answer[#answer + 1] = held
end
if answer[1] ~= 'held' then
  return answer
end

for index = 5, amount ~= '0' and #KEYS or 0 do
  local key, at, held = KEYS[index], index * 5 - 20, answer[index * 2 - 3]
  add(key, 'held', amount)
  if ARGV[at] == 'c' then
    -- A window's first writer says when it goes; later ones need not.
    if held == '0' then
      redis.call('PEXPIREAT', key, digits(ARGV[at + 2] + WINDOW_GRACE_MS))
    end
  elseif held == '0' then
    redis.call('HSETNX', key, 'low', digits(math.floor(now / ARGV[at + 1]) - ARGV[at + 2]))
    redis.call('PERSIST', key)
  end
end
answer[4] = '[' .. table.concat(charges, ',') .. ']'
answer[5] = digits(now + ARGV[3])
redis.call('HSET', KEYS[3], 'phase', 'held', 'amount', amount, 'charges', answer[4], 'context', ARGV[4],
  'expires', answer[5], 'admitted', digits(now))
redis.call('ZADD', KEYS[4], answer[5], ARGV[1])
return answer
