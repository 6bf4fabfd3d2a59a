-- Publishes one versioned record, unless a newer one is there. KEYS: record. ARGV: version, body ('' for a withdrawn
-- one, which stays long enough to stop an older publication that is still under way), how long that is in ms.
if tonumber(redis.call('HGET', KEYS[1], 'v') or '0') > tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'body', ARGV[2])
if ARGV[2] == '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('PERSIST', KEYS[1])
end
return 1
