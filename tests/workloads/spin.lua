-- Spends its time in a loop that LuaJIT compiles: spin.lua SECONDS.
local function spin(turns)
  local sum = 0
  for turn = 1, turns do
    sum = (sum + turn * 7) % 1000003
  end
  return sum
end

local stop = os.time() + tonumber(arg[1])
print("ready")
io.stdout:flush()
while os.time() < stop do
  spin(5000000)
end
