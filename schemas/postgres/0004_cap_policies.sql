-- How a vendor's calls are paid for, and the cap matrix over it.

ALTER TABLE connections
  ADD COLUMN auth_mode text NOT NULL DEFAULT 'metered'
    CHECK (auth_mode IN ('metered', 'shared', 'host-session', 'local'));

-- One row a cap that was spoken of: limit_nano null is a cap that is off on purpose. since_version is the
-- config_version that it has been enforced since, or was turned off with.
CREATE TABLE caps (
  org text NOT NULL REFERENCES orgs,
  billing_class text NOT NULL,
  period text NOT NULL CHECK (period IN ('daily', 'monthly', 'per_session')),
  limit_nano bigint CHECK (limit_nano >= 0),
  since_version bigint NOT NULL CHECK (since_version > 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (org, billing_class, period)
);
