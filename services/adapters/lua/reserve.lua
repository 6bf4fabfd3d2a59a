-- Twin of core.reserve.reserve.
-- KEYS: epoch, configuration, hold, due, then the figures of each budget of each option.
-- ARGV: reservation id, hold ms, amount, context, then of each budget: kind (c calendar, r ring, s session, l all time),
--       start ms or bucket ms, end ms or count, limit, its charge as JSON (a ring's without its end, which is the bucket
--       that is decided here), its full rule; then of each alternative: amount, context, how many budgets it has.
-- Answers cold | stale, version, now
--   | held, version, now, option, expires at, then spent and held of each budget of the option: before this hold, and
--     empty for one that is left out
--   | known, version, now, option, expires at, charges, amount, context, then spent and held of each budget of the option
--   | refused, version, now, then of each budget of the first option that is in the way: its number from 0, spent, held,
--     and all of its ring.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return { 'cold' }
end
local version = redis.call('HGET', KEYS[2], 'v') or '0'
local now = now_ms()
local alternatives_at = 5 + 6 * (#KEYS - 4)
local answer, charges, first_amount

-- The figures of a budget, and its charge. `at` is the place of its kind.
local function look(key, at)
  if ARGV[at] ~= 'r' then
    local figures = redis.call('HMGET', key, 'spent', 'held')
    return figures[1] or '0', figures[2] or '0', ARGV[at + 4]
  end
  local bucket = math.floor(now / ARGV[at + 1])
  local figures = redis.call('HMGET', key, 'total', 'held', 'low')
  if figures[3] and tonumber(figures[3]) < bucket - ARGV[at + 2] then
    advance(key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), now)
    figures = redis.call('HMGET', key, 'total', 'held')
  end
  return figures[1] or '0', figures[2] or '0', ARGV[at + 4] .. digits(bucket) .. '"]'
end

local function look_at_known(option)
  local first, count = 5, #KEYS - 4
  for at = alternatives_at, #ARGV, 3 do
    count = count - ARGV[at + 2]
  end
  for number = 1, alternatives_at + option * 3 <= #ARGV + 1 and option or 0 do
    first = first + count
    count = tonumber(ARGV[alternatives_at + number * 3 - 1])
  end
  for index = first, first + count - 1 do
    local spent, held = look(KEYS[index], index * 6 - 25)
    answer[#answer + 1] = spent
    answer[#answer + 1] = held
  end
end

-- Looks at the budgets of an option; answers what is in its way, or nil, and whether the alternatives may be tried.
local function try(option, first, last, amount)
  answer, charges = { 'held', version, now, option, '' }, {}
  local in_the_way, is_soft
  for index = first, last do
    local key, at = KEYS[index], index * 6 - 25
    local spent, held, charge = look(key, at)
    if not has_room(ARGV[at + 3], spent, held, amount) then
      local rule = ARGV[at + 5]
      if rule == 'parent' then
        spent, held, charge = '', '', nil
      elseif rule ~= 'pass' then
        if not in_the_way then
          in_the_way, is_soft = { 'refused', version, now }, true
        end
        is_soft = is_soft and rule == 'downgrade'
        in_the_way[#in_the_way + 1] = { index - first, spent, held, ARGV[at] == 'r' and redis.call('HGETALL', key) or {} }
      end
    end
    charges[#charges + 1] = charge
    answer[#answer + 1] = spent
    answer[#answer + 1] = held
  end
  return in_the_way, is_soft
end

local function hold(first, last, amount, context)
  for index = first, amount ~= '0' and last or 0 do
    local key, at, held = KEYS[index], index * 6 - 25, answer[(index - first) * 2 + 7]
    if held ~= '' then
      add(key, 'held', amount)
      -- Whoever is the first to hold says how long the figures stay; later ones need not.
      if held == '0' then
        local kind = ARGV[at]
        if kind == 'c' then
          redis.call('PEXPIREAT', key, digits(ARGV[at + 2] + WINDOW_GRACE_MS))
        elseif kind == 'r' then
          redis.call('HSETNX', key, 'low', digits(math.floor(now / ARGV[at + 1]) - ARGV[at + 2]))
          redis.call('PERSIST', key)
        elseif kind == 's' then
          redis.call('PERSIST', key)
        end
      end
    end
  end
  local expires = digits(now + ARGV[2])
  redis.call('HSET', KEYS[3], 'phase', 'held', 'amount', amount, 'charges', '[' .. table.concat(charges, ',') .. ']',
    'context', context, 'expires', expires, 'admitted', digits(now))
  redis.call('ZADD', KEYS[4], expires, ARGV[1])
  answer[5] = expires
end

if redis.call('EXISTS', KEYS[3]) == 1 then
  local known = redis.call('HMGET', KEYS[3], 'charges', 'expires', 'option', 'amount', 'context')
  local option = tonumber(known[3] or '0')
  answer = { 'known', version, now, option, known[2], known[1], known[4], known[5] or '' }
  look_at_known(option)
  return answer
end
for at = 5, alternatives_at - 1, 6 do
  if ARGV[at] == 'c' and (now < tonumber(ARGV[at + 1]) or now >= tonumber(ARGV[at + 2])) then
    return { 'stale', version, now }
  end
end

local last = #KEYS
for at = alternatives_at, #ARGV, 3 do
  last = last - ARGV[at + 2]
end
local refused, is_soft = try(0, 5, last, ARGV[3])
if not refused then
  hold(5, last, ARGV[3], ARGV[4])
  return answer
end
for at = is_soft and alternatives_at or #ARGV, #ARGV - 1, 3 do
  local first, option = last + 1, (at - alternatives_at) / 3 + 1
  last = last + ARGV[at + 2]
  if not try(option, first, last, ARGV[at]) then
    hold(first, last, ARGV[at], ARGV[at + 1])
    redis.call('HSET', KEYS[3], 'option', digits(option))
    return answer
  end
end
return refused
