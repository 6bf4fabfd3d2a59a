-- Parts of budgets that agents have handed to runs and sub-agents (BU-9), each with a key of its own. The money is held
-- by the reservation of the same id, which the gateway made; a delegation is over when ended_at is set, and its key is
-- revoked in the same change, because without the delegation the key would spend from the budgets it was carved from.
CREATE TABLE delegations (
  budget_id text PRIMARY KEY,
  org text NOT NULL REFERENCES orgs,
  reservation_id text NOT NULL UNIQUE,
  parent_budget_id text NOT NULL,
  key_id text NOT NULL UNIQUE REFERENCES keys,
  limit_nano bigint NOT NULL CHECK (limit_nano > 0),
  covers jsonb NOT NULL,
  starts_ms bigint NOT NULL,
  ends_ms bigint NOT NULL CHECK (ends_ms > starts_ms),
  made_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz
);
CREATE INDEX live_delegations ON delegations (org) WHERE ended_at IS NULL;
CREATE INDEX delegations_by_maker ON delegations (org, made_by);
