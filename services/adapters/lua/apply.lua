-- Twin of core.fold.apply.
-- KEYS: epoch, offset fence, producers' sequences, due, marks, then the holds and figures that the steps name by their
--       number.
-- ARGV: prefix of the org's keys, next offset, = and the token of the marks (- for any), where the fence must stand at
--       least, then of each step: kind, offset, producer, sequence, reservation id, amount, context, expires at, time, key number of its hold, its
--       charges as JSON, how many they are, and of each charge: key number of its figures, window; then its implied
--       charges in the same way, but their JSON comes last, and only where there are any.
-- Answers how many steps were applied and how many were duplicates; behind when the fence stands lower; outdated when
-- the marks are others; or nothing when the org is cold.
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  return {}
end
local fence = tonumber(redis.call('GET', KEYS[2]) or '0')
if fence < tonumber(ARGV[4]) then
  return { 'behind' }
end
if ARGV[3] ~= '-' and ARGV[3] ~= '=' .. (redis.call('HGET', KEYS[5], '@token') or '') then
  return { 'outdated' }
end
local loaded_at = tonumber(string.match(epoch, '@(%d+)$') or '')  -- nil under an epoch of an earlier version
local now = now_ms()
local at = 4

local function take(count)
  at = at + count
  return unpack(ARGV, at - count + 1, at)
end

local function take_charges()
  local charges = {}
  for index = 1, tonumber((take(1))) do
    local key, window = take(2)
    charges[index] = { key = KEYS[tonumber(key)], window = window, span = parse_span(window) }
  end
  return charges
end

local function may_be_forgotten(admitted_at)
  local surely_by = admitted_at - CLOCK_MARGIN_MS
  return loaded_at and surely_by >= loaded_at and now >= surely_by + TOMBSTONE_MS
end

local function take_out(hold, charges)
  for _, charge in ipairs(charges) do
    add_held(charge.key, charge.span, negative(hold[2]), now)
  end
  for _, charge in ipairs(hold[7] and decode_charges(ARGV[1], hold[7]) or {}) do
    add_held(charge.key, charge.span, negative(hold[2]), now)
  end
end

local function take_out_all(hold, charges)
  take_out(hold, charges)
  if hold[8] then
    hold_left(ARGV[1], hold[8], true, now)
  end
end

local function resize(id, hold_key, hold, amount, context, expires, time, charges_json, charges, implied, implied_json)
  take_out_all(hold, decode_charges(ARGV[1], hold[3]))
  for _, charge in ipairs(charges) do
    add_held(charge.key, charge.span, amount, now)
  end
  if hold[7] or hold[8] then
    redis.call('HDEL', hold_key, 'implied', 'left')
  end
  hold_implied(hold_key, amount, implied, implied_json, now)
  redis.call('HSET', hold_key, 'amount', amount, 'charges', charges_json, 'context', context, 'resized', time)
  if tonumber(redis.call('ZSCORE', KEYS[4], id)) == tonumber(hold[4]) then  -- else a reaper has it
    redis.call('HSET', hold_key, 'expires', expires)
    redis.call('ZADD', KEYS[4], expires, id)
  end
end

local function is_one_shot(producer)
  return string.sub(producer, 1, #EXPIRY_PRODUCER) == EXPIRY_PRODUCER
end

local function phase_after(kind)
  return kind == 'settle' and 'settled' or 'expired'
end

-- Answers whether it was an ending after which there may be another one.
local function apply_step(kind, producer, id, amount, context, expires, time, hold_key, charges_json, charges, implied, implied_json)
  local hold = redis.call('HMGET', hold_key, 'phase', 'amount', 'charges', 'expires', 'booked', 'resized', 'implied',
    'left')
  local phase, booked = hold[1], hold[5] or '0'
  if kind == 'restore' then
    if not phase and not may_be_forgotten(time) then
      start_hold(hold_key, id, amount, charges_json, context, expires, time, KEYS[4], charges, now)
      hold_implied(hold_key, amount, implied, implied_json, now)
    elseif phase == 'held' and implied_json and not hold[6] then
      take_out(hold, {})
      hold_implied(hold_key, hold[2], implied, implied_json, now)
    end
    return
  end
  if kind == 'resize' then
    if phase == 'held' and tonumber(time) >= tonumber(hold[6] or '0') then
      resize(id, hold_key, hold, amount, context, expires, time, charges_json, charges, implied, implied_json)
    end
    return
  end
  -- What a producer of one event publishes again, no sequence tells from the first.
  local may_end_again = kind == 'expire' or is_one_shot(producer)
  local held_charges = charges
  if not phase then
    redis.call('HSET', hold_key, 'amount', '0', 'charges', charges_json, 'expires', '0', 'admitted', '0')
  else
    if phase == 'settled' or (phase == 'expired' and kind == 'expire') then
      return
    end
    if hold[3] ~= charges_json then
      held_charges = decode_charges(ARGV[1], hold[3])
    end
    if phase == 'held' then
      take_out_all(hold, held_charges)
      -- Only a claim moves a hold's place in the order, and only a claimed one can have an expiry in the log.
      may_end_again = may_end_again or tonumber(redis.call('ZSCORE', KEYS[4], id)) ~= tonumber(hold[4])
      redis.call('ZREM', KEYS[4], id)
    else
      may_end_again = true
    end
  end
  for _, charge in ipairs(charges) do
    add_spent(charge.key, charge.span, amount, now)
  end
  for _, charge in ipairs(booked ~= '0' and held_charges or {}) do
    add_spent(charge.key, charge.span, negative(booked), now)
  end
  local ended = phase_after(kind)
  local forget_ms = forget_at(charges, ended, may_end_again, now)
  if held_charges ~= charges then
    forget_ms = math.max(forget_ms, forget_at(held_charges, ended, may_end_again, now))
    redis.call('HSET', hold_key, 'charges', charges_json)
  end
  redis.call('HDEL', hold_key, 'context', 'implied', 'left')
  redis.call('HSET', hold_key, 'phase', ended, 'booked', amount)
  redis.call('PEXPIREAT', hold_key, digits(forget_ms))
  return may_end_again
end

local function is_of_one_window(one, other)
  local ring = string.match(one, '^(r:%d+:%d+):')
  if ring then
    return ring == string.match(other, '^(r:%d+:%d+):')
  end
  local start, stop = string.match(one, '^c:(%d+):(%d+)$')
  local other_start, other_stop = string.match(other, '^c:(%d+):(%d+)$')
  return one == other
    or start and other_start and (tonumber(stop) <= tonumber(other_start) or tonumber(other_stop) <= tonumber(start))
end

local function is_carried(implied, named)
  for _, each in ipairs(named) do
    if each[1] == implied[1] and is_of_one_window(each[3], implied[3]) then
      return true
    end
  end
  return false
end

-- Twin of core.fold's: the charges that an ending does not carry, when it is the one that counts.
local function apply_implied(kind, before, amount, hold_key, implied, implied_json, may_end_again)
  local phase, booked = before[1], before[2] or '0'
  if phase == 'settled' or (phase == 'expired' and kind == 'expire') then
    return
  end
  local words = booked ~= '0' and cjson.decode(implied_json)
  local named = words and cjson.decode(before[3])
  for index, charge in ipairs(implied) do
    add_spent(charge.key, charge.span, amount, now)
    if words and not is_carried(words[index], named) then
      add_spent(charge.key, charge.span, negative(booked), now)
    end
  end
  if may_end_again then
    redis.call('PEXPIREAT', hold_key, digits(forget_at(implied, phase_after(kind), true, now)), 'GT')
  end
end

local sequences = {}
local applied, duplicates = 0, 0
while at < #ARGV do
  local kind, offset, producer, sequence, id, amount, context, expires, time, hold, charges_json = take(11)
  local charges, implied = take_charges(), take_charges()
  local implied_json = #implied > 0 and take(1) or nil
  -- Behind the sequence of a producer that has been silent stands the day (silent.lua); the comparison does not mind.
  local seen = sequences[producer] or redis.call('HGET', KEYS[3], producer) or '0'
  if tonumber(offset) < fence or tonumber(sequence) <= tonumber(seen) then
    duplicates = duplicates + 1
  else
    if not is_one_shot(producer) then
      sequences[producer] = sequence
    end
    local hold_key = KEYS[tonumber(hold)]
    local before = implied_json and (kind == 'settle' or kind == 'expire') and redis.call('HMGET', hold_key, 'phase', 'booked',
      'charges')
    local may_end_again = apply_step(kind, producer, id, amount, context, expires, time, hold_key, charges_json, charges,
      implied, implied_json)
    if before then
      apply_implied(kind, before, amount, hold_key, implied, implied_json, may_end_again)
    end
    applied = applied + 1
  end
end
for producer, sequence in pairs(sequences) do
  redis.call('HSET', KEYS[3], producer, sequence)
end
set_expiries(now)
if tonumber(ARGV[2]) > fence then
  redis.call('SET', KEYS[2], ARGV[2])
end
return { applied, duplicates }
