-- Moves a fence forward, never back. KEYS: fence, then epoch and own fence of orgs. ARGV: next offset, and where the
-- fence must stand at least. Answers 1; or 0, and nothing is changed, when it stands below that, or a warm org's own one
-- below the next offset: the server has lost its last writes.
local fence = tonumber(redis.call('GET', KEYS[1]) or '-1')
if fence >= 0 and fence < tonumber(ARGV[2]) then
  return 0
end
for index = 2, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[index]) == 1
    and tonumber(redis.call('GET', KEYS[index + 1]) or '0') < tonumber(ARGV[1]) then
    return 0
  end
end
if fence < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
end
return 1
