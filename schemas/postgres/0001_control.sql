-- What control keeps. Every write to an org bumps orgs.config_version in its own transaction, which also makes the
-- writes of one org wait for each other: rules that span rows need no other lock.

-- Audit entries and price catalogs are facts: the database itself refuses to change them.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are never changed or deleted', TG_TABLE_NAME;
END
$$;

CREATE TABLE installation (
  single boolean PRIMARY KEY DEFAULT true CHECK (single),
  master_key_fingerprint text NOT NULL
);

CREATE TABLE price_catalogs (
  version text PRIMARY KEY,
  body bytea NOT NULL,
  loaded_at timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER price_catalogs_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON price_catalogs
  EXECUTE FUNCTION refuse_change();

CREATE TABLE orgs (
  name text PRIMARY KEY,
  config_version bigint NOT NULL DEFAULT 1 CHECK (config_version > 0),
  catalog_version text NOT NULL REFERENCES price_catalogs,
  hold_ms bigint NOT NULL CHECK (hold_ms > 0),
  book_expired boolean NOT NULL DEFAULT true,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE teams (
  org text NOT NULL REFERENCES orgs,
  name text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (org, name)
);

-- An agent has no team until something names both.
CREATE TABLE agents (
  org text NOT NULL REFERENCES orgs,
  name text NOT NULL,
  team text,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (org, name),
  FOREIGN KEY (org, team) REFERENCES teams (org, name)
);

-- A key is stored as its HMAC only; hint is its last four characters.
CREATE TABLE keys (
  key_id text PRIMARY KEY,
  org text NOT NULL REFERENCES orgs,
  hash text NOT NULL UNIQUE,
  hint text NOT NULL,
  role text NOT NULL CHECK (role IN ('org_admin', 'agent')),
  pins jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);
CREATE INDEX keys_of_org ON keys (org, key_id);

-- zone is empty for a rolling window, so that it can be part of the rule "one budget a scope, window and zone".
CREATE TABLE budgets (
  budget_id text PRIMARY KEY,
  org text NOT NULL REFERENCES orgs,
  scope_kind text NOT NULL CHECK (scope_kind IN ('org', 'team', 'agent')),
  scope_value text NOT NULL,
  time_window text NOT NULL,
  zone text NOT NULL,
  limit_nano bigint NOT NULL CHECK (limit_nano >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (org, scope_kind, scope_value, time_window, zone)
);

CREATE TABLE connections (
  org text NOT NULL REFERENCES orgs,
  vendor text NOT NULL,
  dialect text NOT NULL,
  base_url text NOT NULL,
  sealed_key text,
  key_hint text,
  prices_as text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (org, vendor)
);

CREATE TABLE audit (
  entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org text NOT NULL REFERENCES orgs,
  config_version bigint NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  target text NOT NULL,
  before jsonb,
  after jsonb,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_of_org ON audit (org, entry_id DESC);
CREATE TRIGGER audit_entries_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
  EXECUTE FUNCTION refuse_change();
