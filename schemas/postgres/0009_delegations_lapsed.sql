-- A part that was held no more before anybody was told its key, and has ended by that: a request that asks for it again is
-- told so, for ever, and not the key (BU-9).
ALTER TABLE delegations ADD COLUMN has_lapsed boolean NOT NULL DEFAULT false;
