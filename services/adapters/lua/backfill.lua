-- Twin of core.fold.backfill: sets what the windows of some budgets have spent, and marks these budgets.
-- KEYS: epoch, marks, then the offset fences and the figures that the parts name by their number. ARGV: the marks' new
-- token, then the parts, each with its kind first:
--   fence: key number, the offset it must stand at
--   spent: key number of the figures, window, amount
--   filled: budget id, the version it is backfilled for
--   gone: the id of a budget that is no more
-- The fences come first. Answers 1; or 0, and nothing is changed, when the org is cold or one of its fences has moved.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local now = now_ms()
local at = 2
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
while ARGV[at] == 'filled' do
  redis.call('HSET', KEYS[2], ARGV[at + 1], ARGV[at + 2])
  at = at + 3
end
while ARGV[at] == 'gone' do
  redis.call('HDEL', KEYS[2], ARGV[at + 1])
  at = at + 2
end
redis.call('HSET', KEYS[2], '@token', ARGV[1])
set_expiries(now)
return 1
