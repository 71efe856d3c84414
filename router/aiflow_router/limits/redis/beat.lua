-- A router says that it lives, holds its places for another while, and learns who else is there.
--
-- KEYS  the set of routers, then the bucket of each place that it holds.
-- ARGV  its name; for how many seconds it counts as alive, 0 to leave; for how many a place is held;
--       then the holder of each place.
-- Returns how many routers are alive, and how many of them have a name before its own.

local name, alive_s, place_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function exact(number) return string.format('%.17g', number) end

if alive_s > 0 then
  redis.call('ZADD', KEYS[1], exact(now + alive_s), name)
  redis.call('PEXPIRE', KEYS[1], math.ceil(alive_s * 1000))
else
  redis.call('ZREM', KEYS[1], name)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', exact(now))
-- Who was heard by a clock that was ahead was heard now, at the latest.
if alive_s > 0 then
  local longest = exact(now + alive_s)
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. longest, '+inf')) do
    redis.call('ZADD', KEYS[1], longest, late)
  end
end
for i = 2, #KEYS do
  redis.call('ZADD', KEYS[i], exact(now + place_s), ARGV[i + 2])
  redis.call('PEXPIRE', KEYS[i], math.ceil((place_s + 1) * 1000))
end

local alive, before = redis.call('ZRANGE', KEYS[1], 0, -1), 0
for _, other in ipairs(alive) do
  if other < name then before = before + 1 end
end
return {#alive, before}
