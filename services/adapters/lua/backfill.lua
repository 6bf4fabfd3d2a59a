-- Twin of core.fold.backfill: sets what the windows of some budgets have spent, and marks these budgets.
-- KEYS: epoch, marks, then the offset fences, figures and holds that the parts name by their number. ARGV: the marks' new
-- token, prefix of the org's keys, '=' and the token that the marks must have ('-': any), then the parts, each with its
-- kind first:
--   fence: key number, the offset it must stand at
--   spent: key number of the figures, window, amount
--   filled: budget id, the version it is backfilled for
--   held: key number of an open hold, when it was last changed, how many charges these budgets are held with, and of each:
--         key number of its figures, window, its JSON
--   gone: the id of a budget that is no more
-- The fences come first. Without a token nothing is marked, and there are no parts but filled and held. Answers 1; or 0,
-- and nothing is changed, when the org is cold, its marks are others, one of its fences has moved, or what is prepared
-- is done already.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if ARGV[3] ~= '-' and ARGV[3] ~= '=' .. (redis.call('HGET', KEYS[2], '@token') or '') then
  return 0
end
local now = now_ms()
local at = 4
while ARGV[at] == 'fence' do
  if (redis.call('GET', KEYS[tonumber(ARGV[at + 1])]) or '0') ~= ARGV[at + 2] then
    return 0
  end
  at = at + 3
end
while ARGV[at] == 'spent' do
  local key, span = KEYS[tonumber(ARGV[at + 1])], parse_span(ARGV[at + 2])
  if span.bucket and redis.call('EXISTS', key) == 1 then
    advance(key, span.bucket_ms, span.count, now)
  end
  add_spent(key, span, negative(redis.call('HGET', key, span.bucket or 'spent') or '0'), now)
  add_spent(key, span, ARGV[at + 3], now)
  at = at + 4
end
local filled, prepares = {}, ARGV[1] == ''
while ARGV[at] == 'filled' do
  filled[ARGV[at + 1]] = true
  if not prepares then
    redis.call('HSET', KEYS[2], ARGV[at + 1], ARGV[at + 2])
  elseif tonumber(redis.call('HGET', KEYS[2], ARGV[at + 1]) or '0') >= tonumber(ARGV[at + 2]) then
    return 0
  end
  at = at + 3
end

local function hold_anew(key, hold, charges, words)
  for _, charge in ipairs(hold[5] and decode_charges(ARGV[2], hold[5]) or {}) do
    add_held(charge.key, charge.span, negative(hold[2]), now)
  end
  local others = {}
  for _, charge in ipairs(hold[5] and cjson.decode(hold[5]) or {}) do
    if not filled[string.match(charge[1], '^[^@]*')] then
      others[#others + 1] = cjson.encode(charge)
    end
  end
  local kept = decode_charges(ARGV[2], '[' .. table.concat(others, ',') .. ']')
  for index, charge in ipairs(charges) do
    kept[#kept + 1], others[#others + 1] = charge, words[index]
  end
  if #kept > 0 then
    hold_implied(key, hold[2], kept, '[' .. table.concat(others, ',') .. ']', now)
  else
    redis.call('HDEL', key, 'implied')
  end
end

while ARGV[at] == 'held' do
  local key, changed_at = KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2]
  local hold = redis.call('HMGET', key, 'phase', 'amount', 'resized', 'admitted', 'implied')
  local charges, words = {}, {}
  local first = at + 4
  at = first + 3 * ARGV[at + 3]
  for index = first, at - 1, 3 do
    charges[#charges + 1] = { key = KEYS[tonumber(ARGV[index])], span = parse_span(ARGV[index + 1]) }
    words[#words + 1] = ARGV[index + 2]
  end
  if hold[1] == 'held' and tonumber(hold[3] or hold[4]) == tonumber(changed_at) then
    hold_anew(key, hold, charges, words)
  end
end
while ARGV[at] == 'gone' do
  redis.call('HDEL', KEYS[2], ARGV[at + 1])
  at = at + 2
end
if not prepares then
  redis.call('HSET', KEYS[2], '@token', ARGV[1])
end
set_expiries(now)
return 1
