-- Purpose: ends a function with an error of ours. SQLSTATE ZF400: an argument is wrong; ZF404: there is no such thing;
--          ZF409: it exists and does not allow that. As the API's 400, 404 and 409.
create or replace function fleet.refuse(code text, message text, hint text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception using errcode = code, message = message, hint = hint;
end
$$;
comment on function fleet.refuse(text, text, text) is 'Inner part: ends a function with an error of ours.';
