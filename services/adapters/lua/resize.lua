-- Twin of core.reserve.resize.
-- KEYS: epoch, configuration, hold, due, then each budget's figures.
-- ARGV: reservation id, hold ms, amount, context, prefix of the org's keys, then of each budget: kind (c calendar, f one
--       that is fixed, r ring, s session, l all time), start ms or bucket ms, end ms or count, limit, its charge as JSON
--       (a ring's without its end, unless it is fixed), its full rule.
-- Answers cold | gone | stale, version, now
--   | changed, version, now, option, expires at, charges, then spent and held of each budget, this hold included: both
--     empty for one that is left out
--   | refused, version, now, then of each budget that is in the way, as without this hold: its number from 0, spent,
--     held, and all of its ring.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return { 'cold' }
end
local old = redis.call('HMGET', KEYS[3], 'phase', 'amount', 'charges', 'expires', 'option', 'implied', 'left')
if old[1] ~= 'held' then
  return { 'gone' }
end
if tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1])) ~= tonumber(old[4]) then
  return { 'gone' }  -- a reaper has it, and its expiry may be on the way
end
local version = redis.call('HGET', KEYS[2], 'v') or '0'
local now = now_ms()
local amount = ARGV[3]
local spans, asked = {}, {}

local function is_stale(at)
  return ARGV[at] == 'c' and (now < tonumber(ARGV[at + 1]) or now >= tonumber(ARGV[at + 2]))
end

local function span_of(at)
  local kind, first, second = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if kind == 'r' then
    return { bucket_ms = first, count = second, bucket = true }
  end
  return { end_ms = (kind == 'c' or kind == 'f') and second, is_session = kind == 's' }
end

local function figures_of(key, span, at)
  if is_forgotten(span, now) then
    return ARGV[at + 3], '0'  -- what it had spent is gone; it is not known to have room
  end
  local figures = redis.call('HMGET', key, span.bucket and 'total' or 'spent', 'held')
  return figures[1] or '0', figures[2] or '0'
end

local function charge_of(at)
  local charge = ARGV[at + 4]
  if string.byte(charge, -1) == 93 then  -- its bracket: it is whole
    return charge
  end
  return charge .. digits(math.floor(now / ARGV[at + 1])) .. '"]'
end

-- Amounts of any size, which a double does not have exactly. Only of a hold that shrinks, or has shrunk just now.
local function sum(amount, other)
  redis.call('HSET', KEYS[3], 'sum', amount)
  add(KEYS[3], 'sum', other)
  local added = redis.call('HGET', KEYS[3], 'sum')
  redis.call('HDEL', KEYS[3], 'sum')
  return added
end

-- The implied charges, but for those of a budget that is proposed in another window than it is held in; and their JSON.
local function still_implied(implied, held)
  if #implied == 0 then
    return implied
  end
  local anew, kept, words = {}, {}, {}
  for index = 5, #KEYS do
    if not held[KEYS[index]] then
      anew[cjson.decode(asked[index - 4])[1]] = true
    end
  end
  for index, charge in ipairs(cjson.decode(old[6])) do
    if not anew[charge[1]] then
      kept[#kept + 1], words[#words + 1] = implied[index], cjson.encode(charge)
    end
  end
  return kept, #kept > 0 and '[' .. table.concat(words, ',') .. ']' or nil
end

for at = 6, #ARGV, 6 do
  if is_stale(at) then
    return { 'stale', version, now }
  end
end
local same_charges = {}
for index = 5, #KEYS do
  local span = span_of(index * 6 - 24)
  spans[index] = span
  asked[index - 4] = charge_of(index * 6 - 24)
  same_charges[index - 4] = { key = KEYS[index], span = span }
  if span.bucket and redis.call('EXISTS', KEYS[index]) == 1 then
    advance(KEYS[index], span.bucket_ms, span.count, now)
  end
end
local is_same = '[' .. table.concat(asked, ',') .. ']' == old[3]  -- as for a stream that goes on, which is most
local old_charges, was_charged = is_same and same_charges or decode_charges(ARGV[5], old[3]), {}
-- What each key has held of this call until now.
local before = {}
for _, charge in ipairs(old_charges) do
  add_held(charge.key, charge.span, negative(old[2]), now)
  was_charged[charge.key], before[charge.key] = true, old[2]
end
local old_implied = old[6] and decode_charges(ARGV[5], old[6]) or {}
local old_left, left_amounts = {}, {}
if old[7] then
  old_left, left_amounts = hold_left(ARGV[5], old[7], true, now)
end
local implied, implied_json = still_implied(old_implied, was_charged)
for _, charge in ipairs(old_implied) do
  add_held(charge.key, charge.span, negative(old[2]), now)
  before[charge.key] = before[charge.key] and sum(before[charge.key], old[2]) or old[2]
end
for index, charge in ipairs(old_left) do
  before[charge.key] = before[charge.key] and sum(before[charge.key], left_amounts[index]) or left_amounts[index]
end

local refused = { 'refused', version, now }
local charges, left, is_out = {}, {}, {}
for index = 5, #KEYS do
  local key, at = KEYS[index], index * 6 - 24
  local spent, held = figures_of(key, spans[index], at)
  local grows = not before[key] or not has_room(before[key], '0', '0', amount)
  if grows and not has_room(ARGV[at + 3], spent, held, amount) then
    local rule = ARGV[at + 5]
    is_out[index] = rule == 'parent'
    if rule == 'block' or rule == 'downgrade' then
      refused[#refused + 1] = { index - 5, spent, held, spans[index].bucket and redis.call('HGETALL', key) or {} }
    end
  end
  if not is_out[index] then
    charges[#charges + 1] = asked[index - 4]
  end
  local spare = before[key]
  if spare and not is_out[index] then
    spare = (grows or before[key] == amount) and '0' or sum(before[key], negative(amount))
  end
  if spare and spare ~= '0' then
    left[#left + 1] = string.sub(asked[index - 4], 1, -2) .. ',"' .. spare .. '"]'
  end
end
if #refused > 3 then
  for _, charge in ipairs(old_charges) do
    add_held(charge.key, charge.span, old[2], now)
  end
  for _, charge in ipairs(old_implied) do
    add_held(charge.key, charge.span, old[2], now)
  end
  if old[7] then
    hold_left(ARGV[5], old[7], false, now)
  end
  set_expiries(now)
  return refused
end

local expires, charges_json = digits(now + ARGV[2]), '[' .. table.concat(charges, ',') .. ']'
local answer = { 'changed', version, now, tonumber(old[5] or '0'), expires, charges_json }
for index = 5, #KEYS do
  if not is_out[index] then
    add_held(KEYS[index], spans[index], amount, now)
  end
end
if #implied < #old_implied then
  redis.call('HDEL', KEYS[3], 'implied')
end
hold_implied(KEYS[3], amount, implied, implied_json, now)
if #left > 0 then
  local left_json = '[' .. table.concat(left, ',') .. ']'
  redis.call('HSET', KEYS[3], 'left', left_json)
  hold_left(ARGV[5], left_json, false, now)
elseif old[7] then
  redis.call('HDEL', KEYS[3], 'left')
end
for index = 5, #KEYS do
  local spent, held = figures_of(KEYS[index], spans[index], index * 6 - 24)
  answer[#answer + 1] = is_out[index] and '' or spent
  answer[#answer + 1] = is_out[index] and '' or held
end
set_expiries(now)
redis.call('HSET', KEYS[3], 'amount', amount, 'charges', charges_json, 'context', ARGV[4], 'expires', expires,
  'resized', digits(now))
redis.call('ZADD', KEYS[4], expires, ARGV[1])
return answer
