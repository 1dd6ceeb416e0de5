-- What wrk sends: orders, each under an id of its own, and a note of each that was accepted.
-- Arguments: the API key, and the folder for the ids of accepted orders, one file a thread.

local threads = {}

function setup(thread)
    thread:set("number", #threads)
    table.insert(threads, thread)
end

function init(arguments)
    sent, refused, headers = 0, 0, {
        ["X-API-Key"] = arguments[1],
        ["Content-Type"] = "application/json",
    }
    accepted = io.open(arguments[2] .. "/" .. number, "w")
    accepted:setvbuf("full", 65536)
end

function request()
    sent = sent + 1
    local id = string.format("%08x-0000-4000-9000-%012x", number, sent)
    headers["Idempotency-Key"] = id
    return wrk.format("POST", "/orders", headers, '{"order_id": "' .. id .. '", "token": "BTC", '
        .. '"action": "buy", "order_type": "limit", "quantity": "0.25", "price": "64250.00"}')
end

function response(status, _, body)
    if status == 201 then
        accepted:write(string.match(body, '"order_id":%s*"([^"]+)"'), "\n")
        accepted:flush()
    else
        refused = refused + 1
    end
end

function done(summary, latency, _)
    local refusals = 0
    for _, thread in ipairs(threads) do
        refusals = refusals + thread:get("refused")
    end
    io.write(string.format('{"requests": %d, "seconds": %f, "refused": %d, "p50_ms": %f, '
        .. '"p99_ms": %f, "longest_ms": %f, "broken": %d}\n', summary.requests,
        summary.duration / 1e6, refusals, latency:percentile(50) / 1e3,
        latency:percentile(99) / 1e3, latency.max / 1e3, summary.errors.connect
        + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
