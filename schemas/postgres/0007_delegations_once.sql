-- What a part was asked for with, where its request named an Idempotency-Key: the same one is answered with the part that
-- is there, and another body under that key is refused (BU-9). Empty for a part that was asked for without one.
ALTER TABLE delegations ADD COLUMN request_hash text NOT NULL DEFAULT '';
