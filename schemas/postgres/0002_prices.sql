-- Prices of an org's own choosing: which catalog holds for it, what it pays where that differs, what becomes of models
-- and routes without a price, and how calls of a route are treated.

-- A catalog is proposed to an org and holds for it once a person accepts it. A decision is never taken back: what was
-- rejected can be proposed again. base_version is what held when it was proposed; null for an org's first.
CREATE TABLE catalog_proposals (
  proposal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org text NOT NULL REFERENCES orgs,
  version text NOT NULL REFERENCES price_catalogs,
  base_version text REFERENCES price_catalogs,
  state text NOT NULL CHECK (state IN ('pending', 'accepted', 'rejected')),
  proposed_by text NOT NULL,
  proposed_at timestamptz NOT NULL DEFAULT now(),
  decided_by text,
  decided_at timestamptz,
  reason text,
  CHECK ((state = 'pending') = (decided_at IS NULL)),
  CHECK ((decided_at IS NULL) = (decided_by IS NULL)),
  CHECK (state <> 'rejected' OR reason IS NOT NULL)
);
CREATE INDEX catalog_proposals_of_org ON catalog_proposals (org, proposal_id DESC);
CREATE UNIQUE INDEX catalog_pending_once ON catalog_proposals (org, version) WHERE state = 'pending';

CREATE FUNCTION refuse_second_decision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.state <> 'pending' OR NEW.state = 'pending'
     OR (OLD.proposal_id, OLD.org, OLD.version, OLD.base_version, OLD.proposed_by, OLD.proposed_at)
        IS DISTINCT FROM (NEW.proposal_id, NEW.org, NEW.version, NEW.base_version, NEW.proposed_by, NEW.proposed_at)
  THEN
    RAISE EXCEPTION 'rows of % are decided once and never changed otherwise', TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER catalog_proposals_are_decided_once BEFORE UPDATE ON catalog_proposals
  FOR EACH ROW EXECUTE FUNCTION refuse_second_decision();
CREATE TRIGGER catalog_proposals_are_kept BEFORE DELETE OR TRUNCATE ON catalog_proposals
  EXECUTE FUNCTION refuse_change();

-- What holds already was never asked for.
INSERT INTO catalog_proposals (org, version, state, proposed_by, proposed_at, decided_by, decided_at)
  SELECT name, catalog_version, 'accepted', 'control', created_at, 'control', created_at FROM orgs ORDER BY name;

-- An org's own price of a model from a day on, as a period of a catalog entry: the latest row of (org, vendor, model,
-- from_date) counts, and one without a period withdraws it.
CREATE TABLE price_overrides (
  override_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org text NOT NULL REFERENCES orgs,
  vendor text NOT NULL,
  model text NOT NULL,
  from_date date NOT NULL,
  period jsonb,
  max_output_tokens bigint CHECK (max_output_tokens > 0),
  context_window bigint CHECK (context_window > 0),
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX price_overrides_of_org ON price_overrides (org, vendor, model, from_date, override_id DESC);
CREATE TRIGGER price_overrides_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON price_overrides
  EXECUTE FUNCTION refuse_change();

-- vendor and route may be '*'; what is null is left to wider rules.
CREATE TABLE route_rules (
  org text NOT NULL REFERENCES orgs,
  vendor text NOT NULL,
  route text NOT NULL,
  budget_status integer CHECK (budget_status BETWEEN 400 AND 499),
  timeout_ms bigint CHECK (timeout_ms > 0),
  fallbacks jsonb,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (org, vendor, route),
  CHECK (budget_status IS NOT NULL OR timeout_ms IS NOT NULL OR fallbacks IS NOT NULL)
);

ALTER TABLE orgs
  ADD COLUMN unknown_models text NOT NULL DEFAULT 'reject'
    CHECK (unknown_models IN ('reject', 'fallback_price', 'allow_unpriced')),
  ADD COLUMN priced_as_vendor text,
  ADD COLUMN priced_as_model text,
  ADD COLUMN allow_unpriced_routes boolean NOT NULL DEFAULT false,
  ADD CHECK ((unknown_models = 'fallback_price') = (priced_as_vendor IS NOT NULL)),
  ADD CHECK ((priced_as_vendor IS NULL) = (priced_as_model IS NULL));

ALTER TABLE budgets
  ADD COLUMN estimate text NOT NULL DEFAULT 'strict' CHECK (estimate IN ('strict', 'calibrated'));
