-- Written by phalanx. What is refused for its header.
--
-- Whoever logs in writes under his own name: the one address in the From field is the envelope's sender, which Postfix has seen to be his; where
-- that is empty (RFC 8098), it is the login. What a mailbox sends by itself names an address of its own domain. A field of more than 59,000 bytes
-- would be cut by Postfix at 60,000, since there is a milter.
local rspamd_util = require 'rspamd_util'
local FIELD_MAX = 59000

-- How many fields are From, and the length of the longest field.
local function fields(raw)
  local authors, longest, length = 0, 0, 0
  for line in raw:gmatch('[^\r\n]+') do
    if line:match('^%s') then
      length = length + #line + 1
    else
      length = #line
      if line:lower():match('^from%s*:') then authors = authors + 1 end
    end
    longest = math.max(longest, length)
  end
  return authors, longest
end

local function domain(address)
  return (address or ''):match('@([^@]*)$')
end

rspamd_config:register_symbol({
  name = 'PHALANX_HEADER',
  type = 'prefilter',
  priority = 9,
  callback = function(task)
    local authors, longest = fields(tostring(task:get_raw_headers() or ''))
    if longest > FIELD_MAX then
      task:set_pre_result('reject', 'A field of the header is longer than ' .. FIELD_MAX .. ' bytes', 'phalanx')
      return
    end
    local user = task:get_user()
    local is_mailbox = not user and tostring(task:get_from_ip()) == '127.0.0.1' and not task:get_header('Received')
    if not user and not is_mailbox then return end
    local sender = ((task:get_from({ 'smtp', 'orig' }) or {})[1] or {}).addr or ''
    if sender == '' then sender = user or '' end
    sender = sender:lower()
    local field = task:get_header_full('From')
    local found = authors == 1 and field and rspamd_util.parse_mail_address(field[1].decoded, task:get_mempool()) or {}
    local author = #found == 1 and (found[1].addr or ''):lower() or ''
    local is_own = author == sender or is_mailbox and domain(author) == domain(sender)
    if author ~= '' and is_own then return end
    task:set_pre_result('reject', 'The From header must hold one address, that of the sender: ' .. sender, 'phalanx')
  end
})
