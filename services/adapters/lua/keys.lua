-- Those of a server's next keys that upkeep sees to: marks, producers' sequences, and what is kept for all time.
-- KEYS: any key of that server. ARGV: cursor (0 to begin), how many keys to look at.
-- Answers the next cursor, 0 when there is none, then the keys.
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local found = { page[1] }
for _, key in ipairs(page[2]) do
  local kind = string.match(key, '^{[^}]+}:(%l+)')
  if kind == 'bf' or kind == 'p' or ((kind == 'b' or kind == 't') and string.sub(key, -2) == ':l') then
    found[#found + 1] = key
  end
end
return found
