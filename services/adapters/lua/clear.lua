-- Begins to load a cold org: clears what is left of it. The first step is without, and keeps others out.
-- KEYS: epoch, loading, then what goes. ARGV: epoch to be, number of the step, how long in ms the next may be waited for.
-- Answers 1; or 0, and nothing is changed, when it is not the next step of this load.
if not take_step(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]) then
  return 0
end
for index = 3, #KEYS do
  redis.call('UNLINK', KEYS[index])
end
return 1
