-- Twin of core.upkeep.forget_silent, for some of the producers.
-- KEYS: producers' sequences. ARGV: cursor (0 to begin), how many to look at, how many days of silence are allowed, and
-- the milliseconds of a day.
-- Answers the next cursor, 0 when there is none.
-- A sequence that was not set since somebody last looked has a dot behind it, and the day when it was first seen so. As a
-- number it is hardly more than the sequence, and less than the next one, which is all that apply.lua asks of it.
local today = math.floor(now_ms() / ARGV[4])
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local fields = page[2]
for index = 1, #fields, 2 do
  local producer, sequence, day = fields[index], string.match(fields[index + 1], '^(%d+)%.?(%d*)$')
  if day == '' then
    redis.call('HSET', KEYS[1], producer, sequence .. '.' .. string.format('%05d', today))
  elseif today - tonumber(day) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], producer)
  end
end
return page[1]
