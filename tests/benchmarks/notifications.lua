-- Posts notifications that are all different, to wrk's target: two of each session, AVAILABLE and then UNAVAILABLE.
-- Arguments: the token.
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  math.randomseed(os.time() * 1000 + number)
  prefix = string.format("%08x-%04x", math.random(0, 0x7fffffff), number)
  headers = {
    ["Content-Type"] = "application/cloudevents+json",
    ["Authorization"] = "Bearer " .. arguments[1],
  }
  count = 0
end

function request()
  local session = string.format("%s-4000-8000-%012x", prefix, math.floor(count / 2))
  local status = count % 2 == 0 and '"AVAILABLE"' or '"UNAVAILABLE","statusInfo":"NETWORK_TERMINATED"'
  local body = '{"id":"' .. prefix .. count .. '","source":"https://api.example.com/qod/v0/sessions/' .. session
    .. '","specversion":"1.0","type":"org.camaraproject.qod.v0.qos-status-changed","time":"2026-11-24T10:00:0'
    .. count % 2 .. '.000Z","data":{"sessionId":"' .. session .. '","qosStatus":' .. status .. '}}'
  count = count + 1
  return wrk.format("POST", nil, headers, body)
end
