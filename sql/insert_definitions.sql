-- Purpose: notes that a set of views and functions is in force. In the transaction that applies it, by who migrates.
-- Locks:   the new row.
-- Index:   definitions_pkey.
-- $1 text: its checksum; $2 text: the version of the program.
insert into fleet.definitions (checksum, version) values ($1, $2)
