-- Budgets of every scope and window, in a hierarchy, and what becomes of calls that one has no room for.

ALTER TABLE budgets
  DROP CONSTRAINT budgets_scope_kind_check,
  DROP CONSTRAINT budgets_org_scope_kind_scope_value_time_window_zone_key,
  -- What has no meaning for a window is null.
  ADD COLUMN week_start integer CHECK (week_start BETWEEN 0 AND 6),
  ADD COLUMN anchor_day integer CHECK (anchor_day BETWEEN 1 AND 31),
  ADD COLUMN anchor_month integer CHECK (anchor_month BETWEEN 1 AND 12),
  ADD COLUMN anchor text,
  ADD COLUMN expression text,
  ADD COLUMN parent_id text,
  ADD COLUMN child_mode text NOT NULL DEFAULT 'isolated' CHECK (child_mode IN ('isolated', 'fallback')),
  ADD COLUMN enforcement text NOT NULL DEFAULT 'enforce' CHECK (enforcement IN ('enforce', 'monitor')),
  ADD COLUMN when_full text NOT NULL DEFAULT 'block' CHECK (when_full IN ('block', 'downgrade', 'alert')),
  ADD COLUMN downgrade_to text,
  ADD COLUMN thresholds integer[] NOT NULL DEFAULT '{60,85,100}',
  ADD COLUMN extend boolean NOT NULL DEFAULT false,
  -- What was here before counts since ever; nothing of it is to be made up for.
  ADD COLUMN since_version bigint NOT NULL DEFAULT 0 CHECK (since_version >= 0),
  ADD CONSTRAINT budgets_scope_kind_check CHECK (scope_kind IN (
    'org', 'team', 'agent', 'user', 'project', 'session', 'environment', 'key', 'vendor', 'model', 'tag',
    'billing_class', 'cel')),
  ADD CHECK ((scope_kind = 'cel') = (expression IS NOT NULL)),
  ADD CHECK (parent_id IS NOT NULL OR child_mode = 'isolated'),
  ADD CHECK ((when_full = 'downgrade') = (downgrade_to IS NOT NULL));

UPDATE budgets SET anchor_day = 1 WHERE time_window = 'month';

ALTER TABLE budgets
  ADD CONSTRAINT budgets_of_org UNIQUE (org, budget_id),
  ADD CONSTRAINT budgets_once UNIQUE NULLS NOT DISTINCT
    (org, scope_kind, scope_value, time_window, zone, week_start, anchor_day, anchor_month, anchor),
  ADD CONSTRAINT budgets_parent FOREIGN KEY (org, parent_id) REFERENCES budgets (org, budget_id);
CREATE INDEX budgets_of_parent ON budgets (org, parent_id) WHERE parent_id IS NOT NULL;
