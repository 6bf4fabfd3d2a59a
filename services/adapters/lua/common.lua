-- What the scripts share. The adapter puts this text, and the constants of core/hotstate.py, before each of them.
--
-- Money is decimal text. A Lua number is a double, exact only up to 2^53, so amounts are added by HINCRBY, negated as
-- text, and compared in two halves (dollars, and nano-dollars of a dollar) that a double holds exactly.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers go to the server as plain digits, never in scientific notation.
local function digits(number)
  return string.format('%.0f', number)
end

local function halves(amount)
  if string.byte(amount) == 45 then
    local dollars, nanos = halves(string.sub(amount, 2))
    return -dollars, -nanos
  end
  return tonumber(string.sub(amount, 1, -10)) or 0, tonumber(string.sub(amount, -9))
end

-- Whether limit - spent - held >= amount.
local function has_room(limit, spent, held, amount)
  if #limit < 16 and #spent < 16 and #held < 16 and #amount < 16 then
    return limit - spent - held >= tonumber(amount)  -- below a million dollars a double is exact, and quicker
  end
  local limit_dollars, limit_nanos = halves(limit)
  local spent_dollars, spent_nanos = halves(spent)
  local held_dollars, held_nanos = halves(held)
  local amount_dollars, amount_nanos = halves(amount)
  local nanos = limit_nanos - spent_nanos - held_nanos - amount_nanos
  local dollars = limit_dollars - spent_dollars - held_dollars - amount_dollars
  return dollars + math.floor(nanos / 1e9) >= 0
end

local function negative(amount)
  if amount == '0' then
    return amount
  end
  return string.byte(amount) == 45 and string.sub(amount, 2) or '-' .. amount
end

-- A sum past 64 bits stays at the bound, where every budget is full; an error here would leave a script half done.
local function add(key, field, amount)
  local sum = redis.pcall('HINCRBY', key, field, amount)
  if type(sum) ~= 'table' then
    return
  end
  if not string.find(sum.err, 'overflow') and not string.find(sum.err, 'out of range') then
    error(sum.err)
  end
  if string.byte(amount) ~= 45 then
    redis.call('HSET', key, field, MAX_FIGURE)
  end
end

-- The span of a window's text: c:<start>:<end>, r:<bucket_ms>:<count>:<bucket>, s:<session>, or l for all time.
local function parse_span(window)
  local kind, first, second, bucket = string.match(window, '^([cr]):(%d+):(%d+):?(%d*)$')
  if kind == 'r' then
    return { bucket_ms = tonumber(first), count = tonumber(second), bucket = bucket }
  elseif kind == 'c' then
    return { end_ms = tonumber(second) }
  end
  return { is_session = string.byte(window) == 115 }
end

local function is_forgotten(span, now)
  return span.end_ms and now >= span.end_ms + WINDOW_GRACE_MS
end

-- When a charge in this span can no longer change any figure of spent; for spans without an end, long enough.
local function counts_until(span, now)
  if span.end_ms then
    return span.end_ms + WINDOW_GRACE_MS
  end
  return span.bucket and (span.bucket + span.count + 1) * span.bucket_ms or now + SESSION_IDLE_MS
end

-- The first live bucket of each ring that this script has advanced, and the span of each key that it has changed.
local lows, changed = {}, {}

-- Drops the buckets that have left a ring, of which it has never more than a few; answers its first live one.
local function advance(ring, bucket_ms, count, now)
  if lows[ring] then
    return lows[ring]
  end
  local low = tonumber(redis.call('HGET', ring, 'low'))
  local new_low = math.floor(now / bucket_ms) - count
  if not low or low < new_low then
    for _, field in ipairs(low and redis.call('HKEYS', ring) or {}) do
      local bucket = tonumber(field)
      if bucket and bucket < new_low then
        add(ring, 'total', negative(redis.call('HGET', ring, field)))
        redis.call('HDEL', ring, field)
      end
    end
    redis.call('HSET', ring, 'low', digits(new_low))
    low = new_low
  end
  lows[ring] = low
  return low
end

local function add_held(key, span, amount, now)
  if amount == '0' or is_forgotten(span, now) then
    return
  end
  if span.bucket then
    advance(key, span.bucket_ms, span.count, now)
  end
  add(key, 'held', amount)
  changed[key] = span
end

local function add_spent(key, span, amount, now)
  if amount == '0' or is_forgotten(span, now) then
    return
  end
  if not span.bucket then
    add(key, 'spent', amount)
  elseif tonumber(span.bucket) >= advance(key, span.bucket_ms, span.count, now) then
    add(key, span.bucket, amount)
    add(key, 'total', amount)
  end
  changed[key] = span
end

-- Last in a script that adds. Windows go when their grace is over. A ring goes when all its buckets have left it, and a
-- session when it has been idle for long, but neither ever while it holds. What counts for all time stays.
local function set_expiries(now)
  for key, span in pairs(changed) do
    local life = span.is_session and SESSION_IDLE_MS
      or span.bucket and (span.count + 1) * span.bucket_ms + WINDOW_GRACE_MS
    if span.end_ms then
      redis.call('PEXPIREAT', key, digits(span.end_ms + WINDOW_GRACE_MS))
    elseif life and (redis.call('HGET', key, 'held') or '0') == '0' then
      redis.call('PEXPIREAT', key, digits(now + life))
    elseif life then
      redis.call('PERSIST', key)
    end
  end
end

-- The charges that a hold keeps, where the caller has not named their keys: they are named here, in the org's slot.
local function decode_charges(prefix, charges_json)
  local charges = {}
  for index, charge in ipairs(cjson.decode(charges_json)) do
    local budget, window = charge[1], charge[3]
    local span = parse_span(window)
    local name = span.bucket and 'r:' .. budget .. ':' .. digits(span.bucket_ms) .. ':' .. digits(span.count)
      or 'b:' .. budget .. ':' .. window
    charges[index] = { key = prefix .. name, span = span }
  end
  return charges
end

-- Holds what a hold implies, and says so: `implied` with their JSON, which is nil where there are none.
local function hold_implied(key, amount, implied, implied_json, now)
  if implied_json then
    redis.call('HSET', key, 'implied', implied_json)
    for _, charge in ipairs(implied) do
      add_held(charge.key, charge.span, amount, now)
    end
  end
end

-- Holds on what a hold has left to its parents' account, or takes it out: JSON of charges, each with its amount behind it.
-- Answers the charges and their amounts.
local function hold_left(prefix, left_json, is_out, now)
  local left, amounts = decode_charges(prefix, left_json), {}
  for index, charge in ipairs(cjson.decode(left_json)) do
    amounts[index] = charge[4]
    add_held(left[index].key, left[index].span, is_out and negative(charge[4]) or charge[4], now)
  end
  return left, amounts
end

local function start_hold(key, id, amount, charges_json, context, expires, admitted, due, charges, now)
  redis.call('HSET', key, 'phase', 'held', 'amount', amount, 'charges', charges_json, 'context', context,
    'expires', expires, 'admitted', admitted)
  redis.call('ZADD', due, expires, id)
  for _, charge in ipairs(charges) do
    add_held(charge.key, charge.span, amount, now)
  end
end

-- Twin of core.fold's: when an ended hold may be forgotten.
local function forget_at(charges, phase, may_end_again, now)
  local at = now + (phase == 'expired' and CORRECTION_MS or may_end_again and TOLD_AGAIN_MS or TOMBSTONE_MS)
  for _, charge in ipairs(may_end_again and charges or {}) do
    at = math.max(at, counts_until(charge.span, now))
  end
  return at
end

-- Takes a step of loading a cold org, and answers whether it could: it must follow the one before it, of the same load.
-- `loading` is <token>@<number> of the last one. It goes by itself when its loader is not heard of any more; and when a
-- server has lost its last writes, it is the step of what is still there.
local function take_step(epoch, loading, token, number, life_ms)
  local before = number ~= '1' and token .. '@' .. digits(number - 1)
  if redis.call('EXISTS', epoch) == 1 or redis.call('GET', loading) ~= before then
    return false
  end
  redis.call('SET', loading, token .. '@' .. number, 'PX', life_ms)
  return true
end
