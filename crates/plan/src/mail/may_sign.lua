-- Written by phalanx. The domain whose key signs this message, or nil: it is not signed.
-- Signed is what somebody who logged in sends, and what a mailbox sends by itself (an answer while away): it comes from this node, and nobody
-- has received it before. What a mailbox only sends on was written by anybody, and keeps the signature that it has.
return function(task)
  local author = (task:get_from('mime') or {})[1]
  local sender = (task:get_from('smtp') or {})[1]
  if not author or not author.domain then return nil end
  if task:get_user() then return author.domain:lower() end
  if tostring(task:get_from_ip()) ~= '127.0.0.1' or task:get_header('Received') then return nil end
  if not sender or (sender.domain or ''):lower() ~= author.domain:lower() then return nil end
  return author.domain:lower()
end
