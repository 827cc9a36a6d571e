"""Writes another model's name into a request on its way to a server: a filter on the cluster, in Envoy only.

A KServe message carries the model's name, and a server knows only its own. A fallback or a mirror can take a request
when the gateway writes the name it has there. The filter works on the way to one server, after Envoy has chosen it, so
every try carries the right name.
"""

from __future__ import annotations

import json

from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from coordinator.xds.snapshot import packed_any

# Every KServe request that names a model has the name in field 1. A gRPC message is a flag, four bytes of length, and
# the message; a message may come in many chunks and is passed on when it is whole. Compressed messages (flag 1) go on
# as they are, and their server will not know the name.
# Source: gRPC over HTTP/2; Protocol Buffers documentation, "Encoding".
_GRPC = """
local FROM, TO = {old}, {new}
local function varint(bytes, at)
  local value, scale = 0, 1
  while true do
    local byte = bytes:byte(at)
    if byte == nil then return nil, at end
    value, at = value + (byte % 128) * scale, at + 1
    if byte < 128 then return value, at end
    scale = scale * 128
  end
end
local function renamed(message)
  local at = 1
  while at <= #message do
    local start, tag, size = at, nil, nil
    tag, at = varint(message, at)
    if tag == nil then return message end
    local kind = tag % 8
    if kind == 0 then size, at = varint(message, at)
    elseif kind == 1 then at = at + 8
    elseif kind == 5 then at = at + 4
    elseif kind == 2 then
      size, at = varint(message, at)
      if size == nil then return message end
      if tag == 10 and message:sub(at, at + size - 1) == FROM then
        return message:sub(1, start - 1) .. string.char(10, #TO) .. TO .. message:sub(at + size)
      end
      at = at + size
    else return message end
  end
  return message
end
local function framed(flag, message)
  local n = #message
  local a, b, c = math.floor(n / 16777216), math.floor(n / 65536) % 256, math.floor(n / 256) % 256
  return string.char(flag, a, b, c, n % 256) .. message
end
function envoy_on_request(handle)
  local pending, size, needed = {{}}, 0, 5
  for chunk in handle:bodyChunks() do
    local length, out = chunk:length(), {{}}
    if length > 0 then
      pending[#pending + 1] = chunk:getBytes(0, length)
      size = size + length
    end
    if size >= needed then
      local bytes, at = table.concat(pending), 1
      needed = 5
      while size - at + 1 >= 5 do
        local flag, a, b, c, d = bytes:byte(at, at + 4)
        local n = ((a * 256 + b) * 256 + c) * 256 + d
        if size - at + 1 < 5 + n then
          needed = 5 + n
          break
        end
        local message = bytes:sub(at + 5, at + 4 + n)
        out[#out + 1] = framed(flag, flag == 0 and renamed(message) or message)
        at = at + 5 + n
      end
      pending = {{bytes:sub(at)}}
      size = size - at + 1
    end
    chunk:setBytes(table.concat(out))
  end
end
"""
_REST = """
local FROM, TO = "/v2/models/" .. {old}, "/v2/models/" .. {new}
function envoy_on_request(handle)
  local path = handle:headers():get(":path")
  -- Every try of a request has the same headers: what an earlier one wrote may begin with the old name.
  if path:sub(1, #FROM) == FROM and not path:find("^[^/?]", #FROM + 1) then
    handle:headers():replace(":path", TO .. path:sub(#FROM + 1))
  end
end
"""


def renaming_filters(old: str, new: str, *, http2: bool) -> list[hcm_pb2.HttpFilter]:
    """Filters of a cluster whose servers know `new`, for requests that say `old`; both are valid model names."""
    code = (_GRPC if http2 else _REST).format(old=json.dumps(old), new=json.dumps(new))
    lua = lua_pb2.Lua()
    lua.default_source_code.inline_string = code
    return [
        hcm_pb2.HttpFilter(name="envoy.filters.http.lua", typed_config=packed_any(lua)),
        hcm_pb2.HttpFilter(
            name="envoy.filters.http.upstream_codec", typed_config=packed_any(upstream_codec_pb2.UpstreamCodec())
        ),
    ]
