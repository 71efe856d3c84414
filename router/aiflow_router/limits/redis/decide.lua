-- Decides what one call asks of its buckets, all at once: either all are charged, or none is.
--
-- KEYS  the mark of this state, then the bucket of each ask.
-- ARGV  "take", "look" or "settle"; the holder; the mark that the router knows, "" for none; for how
--       many seconds a place is held; what of the rest a lease may take; then of each ask:
--       kind, amount, period in s, burst, cost, its seventh, and its eighth:
--         to take or look: "enforce" or "shadow", and what to take beside the cost as a lease;
--         to settle: the true cost, and "".
-- Returns the mark, 1 or 0 for granted, then of each ask, as strings: what remains, the wait and the
--       time until it is full in s, and the lease that was taken.
--
-- The clock is Redis's own. It may be set back: then what was written "later" counts as written now.

local op, holder, known, place_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local most_leased = tonumber(ARGV[5])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local writes = op ~= 'look'

local ALMOST = 1e-9      -- Doubles do not add up exactly.
local MOMENT_S = 1e-6    -- A wait that ends a rounding error too early would be refused again.
local SLACK_S = 1        -- A key outlives what it says by so much.
local LOOK_AGAIN_S = 0.05 -- Nobody knows when a place is left.
local BACK_S = 3600      -- A clock set back by less is only being set right: what has begun goes on.
local LONGEST_MS = 4e12  -- About a century; Redis takes no more than 2^63.

local function exact(number) return string.format('%.17g', number) end

local function keep(key, seconds)
  redis.call('PEXPIRE', key, exact(math.min(LONGEST_MS, math.ceil((seconds + SLACK_S) * 1000))))
end

-- The mark: when this state began, and whether another was there before it and is lost. After a loss
-- a bucket nobody has written to counts as empty at that moment: what was granted is not granted again.
local mark = redis.call('GET', KEYS[1])
if writes then
  if not mark then
    mark = exact(now) .. (known == '' and ' new' or ' lost')
    redis.call('SET', KEYS[1], mark)
  elseif known ~= '' and known ~= mark and string.sub(mark, -4) == ' new' then
    mark = string.sub(mark, 1, -4) .. 'lost'
    redis.call('SET', KEYS[1], mark)
  end
end
local empty_at = mark and string.sub(mark, -5) == ' lost' and tonumber(string.sub(mark, 1, -6))

-- Days since 1970 as year and month (Howard Hinnant's civil_from_days).
local function month_of(days)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 12 + month - 1
end

-- The day or month that this time is in, as a number, and when it ends.
local function calendar(kind, at)
  local day = math.floor(at / 86400)
  if kind == 'day' then return day, (day + 1) * 86400 end
  local month, last = month_of(day), day
  while month_of(last + 1) == month do last = last + 1 end
  return month, (last + 1) * 86400
end

-- Of each kind: `read` finds how a bucket stands, `take` charges the cost and the lease, `settle`
-- puts the true cost in place of the one that was taken. `left` is what may still be had; a debt is
-- less than 0.
local kinds = {}

local rate = {}

function rate.read(ask)
  local found = redis.call('HMGET', ask.key, 'level', 'at')
  local level, at = tonumber(found[1]), tonumber(found[2])
  if not level then
    level, at = empty_at and 0 or ask.burst, empty_at or now
  end
  ask.per_s = ask.amount / ask.period
  ask.left = math.min(ask.burst, level + ask.per_s * math.max(0, now - at))
  if at > now and writes then rate.write(ask) end
end

function rate.wait(ask)
  if ask.cost > ask.burst then return math.huge end
  return (ask.cost - ask.left) / ask.per_s + MOMENT_S
end

function rate.full_in(ask) return (ask.burst - ask.left) / ask.per_s end

function rate.write(ask)
  redis.call('HSET', ask.key, 'level', exact(ask.left), 'at', exact(now))
  keep(ask.key, rate.full_in(ask))
end

function rate.take(ask)
  ask.leased = math.max(0, math.min(ask.lease, (ask.left - ask.cost) * most_leased))
  ask.left = ask.left - ask.cost - ask.leased
  rate.write(ask)
end

function rate.settle(ask)
  ask.left = math.min(ask.burst, ask.left + ask.cost - ask.true_cost)
  rate.write(ask)
end

kinds.rate = rate

-- A log of what was granted in the last period: members are "holder|cost", scores when.
local strict = {}

function strict.read(ask)
  ask.log = redis.call('ZRANGE', ask.key, 0, -1, 'WITHSCORES')
  ask.used, ask.items = 0, {}
  if empty_at and empty_at > now - ask.period then
    ask.used = ask.amount
    table.insert(ask.items, {at = math.min(now, empty_at), cost = ask.amount})
  end
  for i = 1, #ask.log, 2 do
    local at = tonumber(ask.log[i + 1])
    if at > now then
      at = now
      if writes then redis.call('ZADD', ask.key, exact(now), ask.log[i]) end
    end
    -- One that is exactly a period old still counts.
    if at >= now - ask.period then
      local cost = tonumber(string.match(ask.log[i], '|([^|]*)$'))
      ask.used = ask.used + cost
      table.insert(ask.items, {at = at, cost = cost})
    end
  end
  table.sort(ask.items, function(a, b) return a.at < b.at end)
  ask.left = ask.amount - ask.used
end

function strict.wait(ask)
  local short = ask.cost - ask.left
  if ask.cost > ask.amount then return math.huge end
  for _, item in ipairs(ask.items) do
    short = short - item.cost
    if short <= ALMOST then return item.at + ask.period - now + MOMENT_S end
  end
  return 0
end

function strict.full_in(ask)
  local last = ask.items[#ask.items]
  return last and last.at + ask.period - now or 0
end

function strict.take(ask)
  redis.call('ZREMRANGEBYSCORE', ask.key, '-inf', '(' .. exact(now - ask.period))
  redis.call('ZADD', ask.key, exact(now), holder .. '|' .. ask.cost_text)
  keep(ask.key, ask.period)
  table.insert(ask.items, {at = now, cost = ask.cost})
  ask.left = ask.left - ask.cost
end

function strict.settle(ask)
  local member = holder .. '|' .. ask.cost_text
  local at = redis.call('ZSCORE', ask.key, member)
  if not at then return end
  redis.call('ZREM', ask.key, member)
  if ask.true_cost > 0 then redis.call('ZADD', ask.key, at, holder .. '|' .. ask.true_text) end
end

kinds.strict = strict

-- Who is inside: members are holders, scores when their places lapse unless they say that they live.
local concurrency = {}

function concurrency.read(ask)
  local longest = exact(now + place_s)
  for _, late in ipairs(writes and redis.call('ZRANGEBYSCORE', ask.key, '(' .. longest, '+inf') or {}) do
    redis.call('ZADD', ask.key, longest, late)
    keep(ask.key, place_s)
  end
  ask.left = ask.amount - redis.call('ZCOUNT', ask.key, '(' .. exact(now), '+inf')
end

function concurrency.wait() return LOOK_AGAIN_S end

function concurrency.full_in(ask) return ask.left < ask.amount and LOOK_AGAIN_S or 0 end

function concurrency.take(ask)
  redis.call('ZREMRANGEBYSCORE', ask.key, '-inf', exact(now))
  redis.call('ZADD', ask.key, exact(now + place_s), holder)
  keep(ask.key, place_s)
  ask.left = ask.left - 1
end

function concurrency.settle(ask) redis.call('ZREM', ask.key, holder) end

kinds.concurrency = concurrency

-- What was used in the current day or month, in UTC. What was used by a clock that was far ahead counts
-- as used now, and stops nobody for as long as it was ahead.
local quota = {}

function quota.read(ask)
  local found = redis.call('HMGET', ask.key, 'of', 'used')
  local of, used = tonumber(found[1]), tonumber(found[2])
  local ends
  ask.of, ends = calendar(ask.kind, now)
  local ahead = of and of > ask.of
  if ahead then
    local soon, soon_ends = calendar(ask.kind, now + BACK_S)
    if of == soon then ask.of, ends = soon, soon_ends end
  end
  ask.used = of and of >= ask.of and used or 0
  ask.rest_s, ask.left = ends - now, ask.amount - ask.used
  if ahead and writes then quota.write(ask) end
end

function quota.wait() return math.huge end

function quota.full_in(ask) return ask.used > 0 and ask.rest_s or 0 end

function quota.write(ask)
  redis.call('HSET', ask.key, 'of', ask.of, 'used', exact(ask.used))
  keep(ask.key, ask.rest_s)
end

function quota.take(ask)
  ask.used, ask.left = ask.used + ask.cost, ask.left - ask.cost
  quota.write(ask)
end

function quota.settle(ask)
  ask.used = math.max(0, ask.used + ask.true_cost - ask.cost)
  quota.write(ask)
end

kinds.day = quota
kinds.month = quota

local asks, granted = {}, true
for i = 2, #KEYS do
  local first = 6 + (i - 2) * 7
  local ask = {
    key = KEYS[i], kind = ARGV[first], amount = tonumber(ARGV[first + 1]),
    period = tonumber(ARGV[first + 2]), burst = tonumber(ARGV[first + 3]),
    cost = tonumber(ARGV[first + 4]), cost_text = ARGV[first + 4], leased = 0,
  }
  ask.does = kinds[ask.kind]
  ask.does.read(ask)
  if op == 'settle' then
    ask.true_cost, ask.true_text = tonumber(ARGV[first + 5]), ARGV[first + 5]
    ask.does.settle(ask)
  else
    ask.lease = tonumber(ARGV[first + 6])
    ask.short = ask.cost > ask.left + ALMOST
    if ask.short and ARGV[first + 5] == 'enforce' then granted = false end
  end
  table.insert(asks, ask)
end
if op == 'settle' then return mark end

local reply = {mark or '', granted and 1 or 0}
for _, ask in ipairs(asks) do
  local wait = ask.short and ask.does.wait(ask) or 0
  if op == 'take' and granted and not ask.short then ask.does.take(ask) end
  table.insert(reply, exact(math.max(0, ask.left)))
  table.insert(reply, exact(math.max(0, wait)))
  table.insert(reply, exact(math.max(0, ask.does.full_in(ask))))
  table.insert(reply, exact(ask.leased))
end
return reply
