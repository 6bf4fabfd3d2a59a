-- Clears what is left of a cold org, before it is loaded. KEYS: epoch, then what goes. Answers 0 when it is not cold.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
for index = 2, #KEYS do
  redis.call('UNLINK', KEYS[index])
end
return 1
