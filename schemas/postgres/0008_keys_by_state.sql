-- A publication reads the live keys of an org, and of those that are revoked the ones since the publication before it:
-- agents that hand on parts of budgets leave a revoked key behind for each.
CREATE INDEX live_keys ON keys (org) WHERE revoked_at IS NULL;
CREATE INDEX revoked_keys ON keys (org, revoked_at) WHERE revoked_at IS NOT NULL;
