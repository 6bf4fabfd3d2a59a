-- Keeps the percents that have been told of for a slot. KEYS: the set. ARGV: when it is forgotten (empty: never), then the
-- percents; none for a slot that is armed anew.
redis.call('DEL', KEYS[1])
for index = 2, #ARGV do
  redis.call('SADD', KEYS[1], ARGV[index])
end
if #ARGV > 1 and ARGV[1] ~= '' then
  redis.call('PEXPIREAT', KEYS[1], ARGV[1])
end
