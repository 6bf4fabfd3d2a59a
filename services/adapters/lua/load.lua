-- Twin of core.fold.load, in pages; the adapter has cleared what was left of the org.
-- KEYS: epoch, loading, due, then what the parts name by their number. ARGV: epoch, number of the step, how long in ms the
-- next may be waited for, 1 if this is the last, then the parts, each with its kind first:
--   spent: key number of the figures, window, amount
--   held: key number, when it was resized (or 0), its option, reservation id, amount, charges as JSON, context, expires at,
--         admitted at, how many charges, and of each: key number of its figures, window; then its implied charges in the
--         same way, but their JSON comes last, and only where there are any
--   settled, expired: key number, when it was resized (or 0), its option, amount, charges as JSON, expires at, admitted
--         at, booked, forget at (or 0)
--   fence: key number, next offset
--   producer: key number, producer, sequence
--   filled: key number of the marks, budget id (or @token), version (or the marks' token)
-- The last page sets the epoch, as <epoch>@<now>: until then the org is cold, and pages may bring what belongs together
-- one after the other, what a budget has spent and what holds hold of it. Answers 1; or 0, and nothing is changed, when
-- it is not the next step of this load.
if not take_step(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]) then
  return 0
end
local now = now_ms()
local at = 4  -- the last that was taken

local function take(count)
  at = at + count
  return unpack(ARGV, at - count + 1, at)
end

local function take_rare(key)
  local resized, option = take(2)
  if resized ~= '0' then
    redis.call('HSET', key, 'resized', resized)
  end
  if option ~= '0' then
    redis.call('HSET', key, 'option', option)
  end
end

local function take_charges()
  local charges = {}
  for index = 1, tonumber((take(1))) do
    local figures, window = take(2)
    charges[index] = { key = KEYS[tonumber(figures)], span = parse_span(window) }
  end
  return charges
end

while at < #ARGV do
  local kind, number = take(2)
  local key = KEYS[tonumber(number)]
  if kind == 'spent' then
    local window, amount = take(2)
    add_spent(key, parse_span(window), amount, now)
  elseif kind == 'held' then
    take_rare(key)
    local id, amount, charges_json, context, expires, admitted = take(6)
    start_hold(key, id, amount, charges_json, context, expires, admitted, KEYS[3], take_charges(), now)
    local implied = take_charges()
    hold_implied(key, amount, implied, #implied > 0 and take(1) or nil, now)
  elseif kind == 'fence' then
    redis.call('SET', key, (take(1)))
  elseif kind == 'producer' or kind == 'filled' then
    redis.call('HSET', key, take(2))
  else
    take_rare(key)
    local amount, charges_json, expires, admitted, booked, forget_ms = take(6)
    redis.call('HSET', key, 'phase', kind, 'amount', amount, 'charges', charges_json, 'expires', expires,
      'admitted', admitted, 'booked', booked)
    if forget_ms == '0' then
      forget_ms = digits(forget_at(decode_charges('', charges_json), kind, kind == 'expired', now))
    end
    redis.call('PEXPIREAT', key, forget_ms)
  end
end
set_expiries(now)
if ARGV[4] == '1' then
  redis.call('SET', KEYS[1], ARGV[1] .. '@' .. digits(now))
  redis.call('DEL', KEYS[2])
end
return 1
